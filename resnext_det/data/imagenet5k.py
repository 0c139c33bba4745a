"""ImageNet-5K as image lists: which classes of ImageNet-22K, in which order, and their images.

Paper, Sec. 5.2: the 1,000 classes of ILSVRC and the 4,000 others with the most images, tested on
the validation set of ImageNet-1K. No official list of the classes was published with the paper.
Nothing is copied: the lists (data/lists.py) name the images where they lie.
"""

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from ..errors import InputError, shown
from .lists import write_list
from .user_files import read_file

WNID = re.compile(r"n\d{8}")  # WordNet's number of a noun, as ImageNet names its folders
SUFFIXES = tuple(os.fsencode(suffix) for suffix in IMG_EXTENSIONS)
LAYOUT = "<root>/<wnid>/<image> or <root>/train/<wnid>/<image>"  # of ImageNet-22K
LAYOUT_1K = "<root>/val/<wnid>/<image>, and train/ alike if it is there"


@dataclass(frozen=True)
class Summary:
    """What was written.

    Args:
        classes: wnids in the order of the labels, those of ILSVRC first.
        ilsvrc: number of ILSVRC's classes (DATA.EVAL_CLASSES).
        counts: training images of each class.
        val_images: images of the validation list; None where none was written.
    """

    classes: list[str]
    ilsvrc: int
    counts: list[int]
    val_images: int | None

    def lines(self) -> list[str]:
        """The counts, for people."""
        others = self.counts[self.ilsvrc :]
        text = [
            f"classes.txt: {len(self.classes):,} classes, {self.ilsvrc:,} of ILSVRC"
            + (f"; each of the others has {min(others):,} images or more" if others else ""),
            f"train.txt: {sum(self.counts):,} images, {sum(self.counts[: self.ilsvrc]):,} of "
            "ILSVRC's classes",
        ]
        if self.val_images is not None:
            text.append(f"val.txt: {self.val_images:,} images")
        return text


def make(
    imagenet22k: str | Path,
    imagenet1k: str | Path,
    output: str | Path,
    *,
    total: int = 5000,
    class_list: str | Path | None = None,
    threads: int = 16,
) -> Summary:
    """Write classes.txt, train.txt and, where there are validation images, val.txt.

    ILSVRC's classes come first, by wnid, then the others by falling number of images, equals by
    wnid; images of a class are in the order of their names. The same trees give the same bytes.

    Args:
        imagenet22k: a folder as `LAYOUT`; paths of train.txt are relative to it.
        imagenet1k: a folder as `LAYOUT_1K`, whose class folders are ILSVRC's classes and whose
            images val.txt lists, relative to it; or a text file of ILSVRC's wnids.
        output: a folder that is not there yet, or empty; it appears when it is whole.
        total: number of classes.
        class_list: a text file of all ``total`` wnids; its order is kept for those that are not
            ILSVRC's. None: the classes with the most images.
        threads: folders read at once.

    Raises:
        InputError: a folder or file is missing or holds something else; a class of ILSVRC or of
            ``class_list`` has no images in the tree; there are not enough classes.
    """
    output, ilsvrc = Path(output), ilsvrc_classes(imagenet1k)
    if total < len(ilsvrc):
        raise InputError(
            "command line",
            f"--classes is {total}, ILSVRC has {len(ilsvrc)}",
            "give a larger number",
        )
    _check_output(output)
    wanted = _wanted(class_list, ilsvrc, total, imagenet1k) if class_list else None
    tree = Path(imagenet22k)
    folder = tree / "train" if (tree / "train").is_dir() else tree
    needed, whose = (wanted, class_list) if wanted else (ilsvrc, "ILSVRC")
    there = _wnids_in(folder, LAYOUT)
    _check_images(dict.fromkeys(there, 1), needed, folder, whose)  # before the long scan
    names = _scan(folder, wanted or there, threads, "classes of ImageNet-22K")
    counts = {wnid: _count(packed) for wnid, packed in names.items()}
    _check_images(counts, needed, folder, whose)
    classes = wanted or choose(counts, ilsvrc, total, folder)
    val = None
    if Path(imagenet1k).is_dir():
        val = _scan(Path(imagenet1k, "val"), ilsvrc, threads, "validation images")
        _check_images({w: _count(p) for w, p in val.items()}, ilsvrc, imagenet1k, "ILSVRC")
    _write(output, classes, (folder.relative_to(tree), names), val)
    val_images = None if val is None else sum(_count(packed) for packed in val.values())
    return Summary(classes, len(ilsvrc), [counts[wnid] for wnid in classes], val_images)


def ilsvrc_classes(source: str | Path) -> list[str]:
    """ILSVRC's wnids, sorted: the folders of <source>/val, or a text file's (`read_wnids`).

    Raises:
        InputError: neither is there, or <source>/train has other folders than <source>/val.
    """
    source = Path(source)
    if not source.is_dir():
        return sorted(read_wnids(source))
    found = _wnids_in(source / "val", LAYOUT_1K)
    train = source / "train"
    if train.is_dir() and (other := set(found) ^ set(_wnids_in(train, LAYOUT_1K))):
        raise InputError(
            source,
            f"train/ and val/ differ in {len(other)} class folders ({_some(sorted(other))})",
            "give both the same, or name a text file of the 1,000 wnids instead of the folder",
        )
    return found


def read_wnids(path: str | Path) -> list[str]:
    """The first word of every line that is not empty; what follows, such as a name, is ignored.

    Raises:
        InputError: the file cannot be read; names the first line that does not begin with a wnid
            or repeats one.
    """
    try:
        lines = read_file(path).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            path, f"cannot be read as a text file ({error})", "write one wnid a line"
        ) from error
    wnids: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        word = (line.split() or [""])[0]
        if word in wnids or (word and not WNID.fullmatch(word)):
            where = f" (so is line {wnids[word]})" if word in wnids else ""
            raise InputError(
                path,
                f'line {number} is "{shown(line, 60)}"{where}',
                "write one wnid a line (n01440764)",
            )
        if word:
            wnids[word] = number
    if not wnids:
        raise InputError(path, "names no wnid", "write one wnid a line (n01440764)")
    return list(wnids)


def choose(counts: dict[str, int], ilsvrc: list[str], total: int, tree: str | Path) -> list[str]:
    """``ilsvrc``, then the other classes with the most images, ``total`` in all.

    Args:
        counts: images of every class of the tree.
        total: not below the number of ILSVRC's classes.

    Raises:
        InputError: the tree has too few classes with images.

    >>> choose({"n1": 3, "n2": 5, "n3": 9, "n4": 5}, ["n1"], total=3, tree="")
    ['n1', 'n3', 'n2']
    """
    others = [wnid for wnid in counts.keys() - set(ilsvrc) if counts[wnid]]
    if len(ilsvrc) + len(others) < total:
        raise InputError(
            tree,
            f"has {len(ilsvrc) + len(others)} classes with images, --classes is {total}",
            "give the whole tree of ImageNet-22K, or a smaller number",
        )
    others.sort(key=lambda wnid: (-counts[wnid], wnid))
    return [*ilsvrc, *others[: total - len(ilsvrc)]]


def _wanted(class_list, ilsvrc: list[str], total: int, imagenet1k) -> list[str]:
    """The classes of ``class_list`` in the order of the labels."""
    listed = read_wnids(class_list)
    if len(listed) != total:
        raise InputError(
            class_list, f"names {len(listed)} classes, --classes is {total}", "make them equal"
        )
    if missing := sorted(set(ilsvrc) - set(listed)):
        raise InputError(
            class_list,
            f"lacks {len(missing)} of the {len(ilsvrc)} classes of {imagenet1k} ({_some(missing)})",
            "give a list that holds them all",
        )
    return [*ilsvrc, *(wnid for wnid in listed if wnid not in set(ilsvrc))]


def _check_images(counts: dict[str, int], wnids: list[str], folder, whose) -> None:
    if missing := [wnid for wnid in wnids if not counts.get(wnid)]:
        raise InputError(
            folder,
            f"has no images of {len(missing)} of the {len(wnids)} classes of {whose} "
            f"({_some(missing)})",
            "put their folders there, or links to them (ImageNet-1K's train/ holds ILSVRC's)",
        )


def _some(wnids: list[str]) -> str:
    return ", ".join(wnids[:5]) + (", ..." if len(wnids) > 5 else "")


def _wnids_in(folder: Path, layout: str) -> list[str]:
    """The names of the class folders, sorted."""
    try:
        with os.scandir(folder) as entries:
            wnids = sorted(e.name for e in entries if WNID.fullmatch(e.name) and e.is_dir())
    except OSError as error:
        raise InputError(
            folder, f"cannot be read ({error.strerror})", f"the layout looked for is {layout}"
        ) from error
    if not wnids:
        raise InputError(folder, "has no class folders", f"the layout looked for is {layout}")
    return wnids


def _scan(folder: Path, wnids: list[str], threads: int, what: str) -> dict[str, bytes]:
    """The images' names of every class: sorted, with a newline between; b"" for none."""
    pool = ThreadPoolExecutor(threads)
    try:
        found = pool.map(lambda wnid: _images_in(folder / wnid), wnids)
        return dict(zip(wnids, tqdm(found, desc=what, total=len(wnids)), strict=True))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for thousands of folders


def _images_in(folder: Path) -> bytes:
    try:
        with os.scandir(os.fsencode(folder)) as entries:
            names = sorted(e.name for e in entries if e.name.lower().endswith(SUFFIXES))
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise InputError(
            folder, f"cannot be read ({error.strerror})", "make it a readable folder of images"
        ) from error
    if odd := [name for name in names if set(name) & set(b"\t\r\n")]:
        raise InputError(
            folder, f"has an image named {odd[0]!r}", "name it without tab and line break"
        )
    return b"\n".join(names)


def _count(packed: bytes) -> int:
    return packed.count(b"\n") + 1 if packed else 0


def _check_output(output: Path) -> None:
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise InputError(output, "is there already", "remove it, or choose another --output")


def _entries(
    prefix: Path, names: dict[str, bytes], classes: Iterable[str]
) -> Iterator[tuple[bytes, int]]:
    for label, wnid in enumerate(classes):
        begin = os.fsencode(prefix / wnid) + b"/"
        yield from ((begin + name, label) for name in names[wnid].split(b"\n"))


def _write(
    output: Path, classes: list[str], train: tuple[Path, dict[str, bytes]], val: dict | None
) -> None:
    """The files, in a folder of their own until all are whole."""
    aside = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    prefix, names = train
    try:
        aside.mkdir(parents=True)
        (aside / "classes.txt").write_text("".join(f"{wnid}\n" for wnid in classes))
        images = sum(_count(names[wnid]) for wnid in classes)
        write_list(aside / "train.txt", classes, _entries(prefix, names, classes), images)
        if val is not None:
            entries = _entries(Path("val"), val, val)
            write_list(aside / "val.txt", classes, entries, sum(map(_count, val.values())))
        os.replace(aside, output)
    except OSError as error:
        raise InputError(
            output, f"cannot be written ({error.strerror})", "choose another --output"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
