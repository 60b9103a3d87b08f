"""Files: what cannot be opened is said; what is written appears whole or not at all, under real conditions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.errors import InputError, OutputError
from moiety.files import check_folder, read_bytes, read_text, remove_leftovers, resolve_input, write_all
from tests.small_disk import small_disk

if TYPE_CHECKING:
    from collections.abc import Iterator

BIG = "x" * 200_000


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return every file below the folder, hidden ones too, and what it holds."""
    files = (path for path in sorted(folder.rglob("*")) if not path.is_dir())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# Reading ------------------------------------------------------------------------------------------------------------


def test_text_is_read_without_its_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: \xc3\xa9\n")
    assert read_text(path) == "name: é\n"
    assert read_text(str(path)) == "name: é\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x00\x01", "binary"),
        (b"\xff\xfe", "not UTF-8 text: byte 0 is 0xff"),
        (b"ab\xc3", "byte 2"),
        (b"a" * 11, "10"),
    ],
)
def test_what_is_not_text_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        read_text(path, limit=10)
    assert str(path) in str(caught.value)


def test_what_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    cases = {
        str(tmp_path / "missing"): "no such file",
        str(tmp_path): "is a folder",
        str(tmp_path / "file" / "inner"): "Not a directory",
        str(tmp_path / "loop"): "symbolic links",
        str(tmp_path / ("n" * 300)): "too long",
        "nul\0byte": "null byte",
    }
    for path, said in cases.items():
        with pytest.raises(InputError, match=said):
            read_bytes(path)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
def test_endless_file_is_refused() -> None:
    with pytest.raises(InputError, match="larger than 1,000 bytes"):
        read_bytes("/dev/zero", limit=1000)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "secret").chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        read_bytes(tmp_path / "secret")


# Arguments ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "plain").write_text("x")
    return tmp_path


def test_argument_is_a_file_a_folder_or_a_catalogue_name(here: Path) -> None:
    def resolve(argument: str) -> Path | None:
        return resolve_input(argument, in_folder="config.json", suffixes=(".json",), known={"known"})

    (here / "known").write_text("x")
    assert resolve("deepseek-v3") is None
    assert resolve("") is None
    assert resolve("model") == Path("model/config.json")
    assert resolve("./model") == Path("model/config.json")
    assert resolve(str(here / "model")) == here / "model" / "config.json"
    assert resolve("plain") == Path("plain")
    assert resolve("missing.json") == Path("missing.json")  # spelled as a file: reading it will say that it is missing
    assert resolve("empty") is None  # a folder of that name that holds no model does not hide the catalogue
    assert resolve("known") is None
    assert resolve("./known") == Path("known")
    with pytest.raises(InputError, match=r"the folder holds no config\.json"):
        resolve("./empty")
    with pytest.raises(InputError):
        resolve("~nobody-of-that-name/config.json")


def test_folder_with_several_plans_names_them(here: Path) -> None:
    for name in ("a", "b"):
        (here / "empty" / f"{name}_deployment_method.json").write_text("{}")
    with pytest.raises(InputError, match="name a_deployment_method"):
        resolve_input("empty", in_folder="*_deployment_method.json")
    assert resolve_input("empty/a_deployment_method.json") == Path("empty/a_deployment_method.json")
    with pytest.raises(InputError, match="is a folder"):
        resolve_input("./empty")


# Writing ------------------------------------------------------------------------------------------------------------


def test_files_are_written_into_a_new_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert write_all(folder, {"x.json": "é", "y.bin": b"\x00"}) == (folder / "x.json", folder / "y.bin")
    assert snapshot(tmp_path) == {"a/b/x.json": "é".encode(), "a/b/y.bin": b"\x00"}
    assert not (folder / "x.json").stat().st_mode & 0o111


def test_files_replace_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    (tmp_path / "keep").write_text("kept")
    write_all(tmp_path, {"x": "new", "y": "new"})
    assert snapshot(tmp_path) == {"x": b"new", "y": b"new", "keep": b"kept"}


@given(st.dictionaries(st.sampled_from("abcd"), st.binary(max_size=20)), st.sets(st.sampled_from("abcd")))
def test_everything_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, new: dict[str, bytes], blocked: set[str]
) -> None:
    folder = tmp_path_factory.mktemp("out")
    for name in "ab":
        (folder / name).mkdir() if name in blocked else (folder / name).write_bytes(b"old")
    before = snapshot(folder)
    if set(new) & blocked & {"a", "b"}:
        with pytest.raises(OutputError, match="there is a folder of that name; nothing was changed"):
            write_all(folder, new)
        assert snapshot(folder) == before
    else:
        write_all(folder, new)
        assert snapshot(folder) == {**before, **new}


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/x", "nul\0"])
def test_name_must_be_plain(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError):
        write_all(tmp_path / "out", {"fine": "x", name: "x"})
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "inner", tmp_path / ("n" * 300), Path("nul\0byte")):
        with pytest.raises(OutputError, match="cannot be written"):
            write_all(folder, {"x": "new"})
    assert snapshot(tmp_path) == {"file": b"x"}


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_folder_that_takes_no_files() -> None:
    for folder in ("/proc", "/proc/moiety", "/proc/self/fd"):
        with pytest.raises(OutputError, match="nothing was changed"):
            write_all(folder, {"x": "new"})


def test_a_pipe_or_device_stays_what_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="device or a pipe"):
        write_all(tmp_path, {"pipe": "text"})
    assert (tmp_path / "pipe").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_made_folders_go_again_when_writing_fails(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="too long"):
        write_all(tmp_path / "a" / "b", {"fine": "x", "n" * 300: "x"})
    assert list(tmp_path.iterdir()) == []


def test_text_that_has_no_utf8_form(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="surrogates not allowed"):
        write_all(tmp_path, {"fine": "x", "bad": "\ud800"})
    assert snapshot(tmp_path) == {}


LIMITED = """
import resource, sys
from moiety.errors import OutputError
from moiety.files import write_all
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_all(sys.argv[1], {"small": "new", "big": "x" * 200_000})
except OutputError as error:
    sys.exit(str(error))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX limits")
def test_file_that_the_system_cuts_short(tmp_path: Path) -> None:
    (tmp_path / "small").write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.strip() == f"{tmp_path / 'big'}: cannot be written: File too large; nothing was changed"
    assert snapshot(tmp_path) == {"small": b"old"}


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 64 KiB, where this machine lets us."""
    with small_disk(tmp_path / "disk", "64k") as disk:
        yield disk


def test_full_disk(full_disk: Path) -> None:
    (full_disk / "small").write_text("old")
    with pytest.raises(OutputError, match="No space left on device; nothing was changed"):
        write_all(full_disk / "new", {"small": "new", "big": BIG})
    with pytest.raises(OutputError, match="No space left on device; nothing was changed"):
        write_all(full_disk, {"small": "new", "big": BIG})
    assert snapshot(full_disk) == {"small": b"old"}
    assert [path.name for path in full_disk.iterdir()] == ["small"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        write_all(tmp_path, {"x": "new"})
    tmp_path.chmod(0o700)


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    kept = {"a.json", f".moiety-{os.getpid()}-0badcafe-0.part", ".moiety-notes-of-mine.txt"}
    for name in (*kept, f".moiety-{gone.pid}-0badcafe-0.part", f".moiety-{gone.pid}-0badcafe-1.old"):
        (tmp_path / name).write_text("x")
    remove_leftovers(tmp_path)
    assert set(snapshot(tmp_path)) == kept


def test_a_folder_that_could_not_be_written_to_is_named_before_the_work(tmp_path: Path) -> None:
    check_folder(tmp_path / "to" / "be" / "made")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(OutputError, match="cannot be written: there is a file of that name; nothing was changed"):
            check_folder(path)
