"""The reader of images: files as 8-bit RGB by one set of rules (docs/images.md)."""

import io
import logging
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ..errors import InputError, one_line
from .user_files import require_regular

logger = logging.getLogger(__name__)

PIXEL_FORMATS = ("RGB", "BGR")

# What the eight values of EXIF's orientation tag ask for (Exif 2.3, Sec. 4.6.4 A); 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PROGRAMS = ("EPS",)  # Pillow has Ghostscript run it, where that is installed
IS_PROGRAM = "it is PostScript, a program, not a picture"
RANGELESS = ("I", "F")  # Pillow's 32-bit integers (but see `is_deep`) and floats
_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_DEPTH_16 = ("I;16", "I;16L", "I;16B", "I;16N")
_16_BIT_AS_I = ("PNG", "PPM")  # formats that hold 16 bits at most where Pillow says "I"


def read_rgb(
    source: str | Path | bytes, name: str | Path | None = None, *, short_side: int = 0
) -> Image.Image:
    """An image as 8-bit RGB, by the rules of docs/images.md: the reader of classification and
    detection, in training, evaluation and prediction.

    The first frame, turned as its EXIF tag says. Grey becomes three equal channels, 16 bits of
    grey are scaled by 1/257, what is transparent shows white, CMYK is converted by Pillow.

    Args:
        source: an image file, or the content of one.
        name: what messages call a content; a file is called by its path.
        short_side: of a JPEG that is larger, so many pixels at least are decoded (`reduced`); 0:
            all.

    Raises:
        InputError: the source is not a whole image, has pixels without a fixed range (float,
            32-bit integers), or more of them than Pillow's guard against memory bombs allows.
    """
    name = source if name is None and not isinstance(source, bytes) else name
    try:
        with warnings.catch_warnings():
            # Above half the limit Pillow warns without a name; only above the limit it refuses.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if not isinstance(source, bytes):
                require_regular(source)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                if image.format in PROGRAMS:
                    raise _unreadable(name, IS_PROGRAM, "convert it to PNG or JPEG")
                if short_side:
                    image.draft(None, (short_side, short_side))  # other kinds than JPEG stay
                image.load()  # before the tag is asked for: some formats are turned by this
                return to_rgb(_upright(image), image.format, name)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        most = f"shrink it to {2 * Image.MAX_IMAGE_PIXELS:,} pixels or fewer"
        mend = f"{most}; detectors read larger ones by DATASETS.MAX_IMAGE_PIXELS"
        raise _unreadable(name, _one_line(error), mend) from error
    except Exception as error:  # damaged bytes lead Pillow's decoders to errors of any type
        mend = "replace the file or leave it out"
        raise _unreadable(name, _reason(error, source), mend) from error


def read_array(path: str | Path, pixel_format: str = "RGB", *, short_side: int = 0) -> np.ndarray:
    """An image's pixels by the rules of `read_rgb`, as detectors take them.

    Args:
        pixel_format: "RGB" or "BGR", the order of the channels (INPUT.FORMAT).
        short_side: as of `read_rgb`.

    Returns:
        uint8 (H, W, 3), contiguous and writable; H and W are those of the upright image.

    Raises:
        InputError: another order is asked for; see also `read_rgb`.
    """
    if pixel_format not in PIXEL_FORMATS:
        mend = f"choose one of {', '.join(PIXEL_FORMATS)}"
        raise InputError("INPUT.FORMAT", f"is {pixel_format!r}, no order of three channels", mend)
    image = read_rgb(path, short_side=short_side)
    content = image.tobytes("raw", pixel_format)  # sooner than a reversal in NumPy
    return np.frombuffer(content, np.uint8).reshape(image.height, image.width, 3).copy()


def _unreadable(name: str | Path, reason: str, mend: str) -> InputError:
    return InputError(name, f"cannot be read as an image ({reason})", mend)


def _one_line(error: Exception) -> str:
    return one_line(error) or type(error).__name__


def _reason(error: Exception, source: str | Path | bytes) -> str:
    if isinstance(error, UnidentifiedImageError):  # its own text only repeats the name
        begin = source[:16] if isinstance(source, bytes) else _begin(source)
        found = f"damaged or of no known type, it begins with {begin}"
        return found if begin else "it is empty"
    return getattr(error, "strerror", None) or _one_line(error)


def _begin(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(16)


def _upright(image: Image.Image) -> Image.Image:
    """Turned and mirrored as the EXIF tag says; a damaged EXIF block counts as none."""
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception as error:  # of any type, as above; the pixels are whole
        logger.debug("EXIF is damaged: %s", error)
        turn = None
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image, kind: str | None, name: str | Path) -> Image.Image:
    """A loaded image in any of Pillow's modes as 8-bit RGB, which is what `read_rgb` returns.

    Args:
        kind: Pillow's name of the file's format.

    Raises:
        InputError: the mode has no fixed range (`RANGELESS`).
        ValueError: Pillow makes no RGB of it.
    """
    if is_deep(image.mode, kind):
        grey = np.asarray(image).astype(np.int32)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in RANGELESS:
        depth = "float" if image.mode == "F" else "32-bit integer"
        mend = "convert it to 8 or 16 bits a channel"
        raise _unreadable(name, f"{depth} pixels have no fixed range", mend)
    if not has_transparency(image):
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def is_deep(mode: str, kind: str | None) -> bool:
    """Whether pixels are 16 bits of grey: Pillow's names of the mode and of the file's format."""
    return mode in _DEPTH_16 or (mode == "I" and kind in _16_BIT_AS_I)


def has_transparency(image: Image.Image) -> bool:
    """Whether pixels may be transparent, by a channel, a palette or a colour that stands for it.

    The header tells it: the pixels need not be loaded.
    """
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        return True
    return image.mode == "P" and bool(image.palette) and image.palette.mode.endswith("A")
