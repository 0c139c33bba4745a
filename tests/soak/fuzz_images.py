"""Hostile pictures of every format that Pillow writes, and other things in their place."""

import io
import struct
import zlib
from pathlib import Path
from random import Random

import numpy as np
from fuzz_inputs import Reader, WrongResult, changed_bytes, require
from PIL import Image

from resnext_det.data.coco_images import Header, read_header, set_pixel_limit
from resnext_det.data.images import read_array, read_rgb
from resnext_det.errors import InputError

FILE_NAMES = ("a.png", "a.jpg", "a.tif", "a")
LIMIT = 4_000_000  # pixels; so that what is taken stays small
MODES = {
    "PNG": ("RGB", "RGBA", "P", "L", "1", "I;16", "LA"),
    "JPEG": ("RGB", "L", "CMYK"),
    "GIF": ("P", "L"),
    "TIFF": ("RGB", "L", "I;16", "F", "CMYK", "RGBA", "1", "I"),
    "BMP": ("RGB", "L", "P", "1"),
    "WEBP": ("RGB", "RGBA"),
    "PPM": ("RGB", "L", "1", "I;16"),
    "JPEG2000": ("RGB", "L", "RGBA"),
    "AVIF": ("RGB",),
    "ICO": ("RGBA",),
    "ICNS": ("RGBA",),
    "TGA": ("RGB", "RGBA", "L"),
    "PCX": ("RGB", "P"),
    "SGI": ("RGB", "L"),
    "DDS": ("RGBA",),
    "IM": ("RGB", "F"),
    "SPIDER": ("F",),
    "QOI": ("RGB",),
}
COMPRESSIONS = ("raw", "tiff_deflate", "tiff_lzw", "packbits", "jpeg", "group4")
POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(canary) (w) file closefile\nshowpage\n"
)
TEXTS = (b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0\x08\0\0\0", b"P6\n99999 99999\n255\n")
TEXTS += (b"P5 1000000000 1000000000 255 ", b"P7\n", b"\xff\xd8\xff", b"RIFF\xff\xff\xff\xffWEBP")
TEXTS += (b"#define x_width 100000\n#define x_height 100000\nstatic char x_bits[] = {0", POSTSCRIPT)
TEXTS += (b"\xc5\xd0\xd3\xc6" + bytes(28), b"SIMPLE  =                    T", b"\0\0\1\0\xff\xff")
TEXTS += (b"8BPS\0\1" + bytes(6) + b"\0\3\0\1\0\0\0\1\0\0\0\x08\0\3", b"/* XPM */\n", b"<svg/>")
TEXTS += (b"P1\n" + b"9" * 5000, b"Pf\n3 3\n-1e-400\n", b"\x0a\5\1\x08" + b"\xff" * 200, b"BLP2")


def _encoded(kind: str, mode: str, random: Random) -> bytes:
    shape = {1: (16, 20), 2: (16, 20, 2), 3: (16, 20, 3), 4: (16, 20, 4)}
    generator = np.random.default_rng(random.randrange(9))
    pixels = generator.integers(0, 256, shape[3], dtype=np.uint8)
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
    image = image if image.mode == mode else image.convert(mode)
    size = (32, 32) if kind in ("ICNS", "ICO") else image.size
    options: dict = {"size": size} if size == image.size else {}
    image, content = image.resize(size), io.BytesIO()
    if kind == "TIFF" and mode in ("RGB", "L", "1"):
        options["compression"] = "group4" if mode == "1" else random.choice(COMPRESSIONS[:5])
    if kind in ("JPEG", "PNG", "WEBP", "TIFF") and random.random() < 0.3:
        exif = Image.Exif()
        exif[0x0112] = random.choice((1, 3, 6, 8, 9))
        options["exif"] = exif.tobytes()
    if kind == "JPEG" and random.random() < 0.3:
        options["progressive"] = True
    image.save(content, kind, **{k: v for k, v in options.items() if k != "size"})
    return content.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(random: Random) -> bytes:
    """A PNG put together by hand, with lies and bombs in its chunks and right checksums."""
    side = random.choice((1, 3, 100, 1999, 2001, 50_000, 100_000, 2**31 - 1, 0))
    depth, colour = random.choice(((8, 2), (8, 2), (1, 0), (16, 0), (8, 3), (8, 6), (7, 9)))
    bomb = zlib.compress(bytes(random.choice((10, 10**6, 10**8))), 9)
    extra = (
        _chunk(b"zTXt", b"Comment\0\0" + bomb),
        _chunk(b"iCCP", b"x\0\0" + bomb),
        _chunk(b"iTXt", b"x\0\1\0\0\0" + bomb),
        _chunk(b"tRNS", random.randbytes(random.choice((0, 1, 2, 6, 300)))),
        _chunk(b"PLTE", bytes(random.choice((0, 3, 5, 900)))),
        _chunk(b"eXIf", random.randbytes(40)),
        _chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)),
        _chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, side % 2**31, 9, 2**30, 9, 1, 1, 0, 0)),
        _chunk(b"gAMA", b""),
        _chunk(b"pHYs", b"\0"),
    )
    header = struct.pack(">IIBBBBB", side, random.choice((side, 1, 7)), depth, colour, 0, 0, 0)
    parts = [_chunk(b"IHDR", header), *random.sample(extra, random.randint(0, 3))]
    parts += [_chunk(b"IDAT", bomb)] * random.choice((0, 1, 3)) + [_chunk(b"IEND", b"")]
    if random.random() < 0.2:
        random.shuffle(parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _prepare(folder: Path) -> list[tuple[str, bytes]]:
    random, found = Random(0), []
    for kind, modes in MODES.items():
        for mode in modes * 2:
            try:
                found.append((kind, _encoded(kind, mode, random)))
            except (OSError, ValueError, KeyError, TypeError):  # a Pillow without this coder
                continue
    return found


def _make(random: Random, made_from: list[tuple[str, bytes]], folder: Path) -> Path:
    path, what = folder / random.choice(FILE_NAMES), random.random()
    if what < 0.2:
        data = _png(random)
    elif what < 0.25:
        data = random.choice(TEXTS)
    else:
        data = changed_bytes(random, random.choice(made_from)[1])
    path.write_bytes(data)
    return path


def _check(path: Path, header: Header) -> None:
    image = read_rgb(path)
    require(image.mode == "RGB" and 0 not in image.size, f"an image {image.mode} {image.size}")
    require(image.width * image.height <= LIMIT, f"an image of {image.size}")
    array = read_array(path, "BGR")
    require(array.shape == (image.height, image.width, 3), f"an array {array.shape}")
    require(array.dtype == np.uint8 and array.flags.writeable, "an array of another kind")
    require(np.array_equal(array[:, :, ::-1], np.asarray(image)), "BGR is not RGB turned round")
    if not header.error and header.orientation == 1 and header.format not in ("PNG", "ICO", "ICNS"):
        require(header.size == image.size, f"header {header.size}, image {image.size}")


def _read(path: Path) -> None:
    """As a file and as a shard's content; the header, which never raises."""
    set_pixel_limit(LIMIT)
    header, whole = read_header(str(path)), read_header(str(path), decode=True)
    for error in (header.error, whole.error):
        require(error.isprintable(), f"the header's error {error!a:.200}")
    try:
        _check(path, whole)
    except InputError:
        # What cannot be decoded must be told by the check that decodes, but for what has no range.
        ranged = whole.mode not in ("I", "F")
        if not whole.error and ranged and path.is_file():
            raise WrongResult(f"the check has read it: {whole}") from None
        raise
    finally:
        if path.is_file():
            try:
                read_rgb(path.read_bytes(), "shard.tar, member a.png")
            except InputError as error:
                require(str(error).isprintable(), "the message of a shard's image")


IMAGES = Reader("images", _prepare, _make, _read, FILE_NAMES)
