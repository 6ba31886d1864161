"""Another process's memory, through process_vm_readv and through /proc/PID/mem."""

import errno
import os
import subprocess

import pytest
from stucktrace.collectors import memory, regions

from tests.harness import pythons

TARGET = """
import ctypes, mmap, time
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
page = libc.mmap(None, 3 * 4096, 3, 0x22, -1, 0)
libc.munmap(ctypes.c_void_p(page + 4096), ctypes.c_size_t(4096))
ctypes.memmove(page, b"first page", 10)
ctypes.memmove(page + 8192, b"third page", 10)
print("ready", page)
time.sleep(600)
"""


@pytest.fixture(params=["process_vm_readv", "mem"])
def means(request, monkeypatch):
    if request.param == "mem":
        monkeypatch.setattr(memory, "_readv", None)


@pytest.fixture(scope="module")
def target():
    with pythons.run(TARGET) as child:
        yield child


def test_exactly_what_was_asked_for(means, target):
    page = int(target.words[0])
    assert memory.read(target.pid, page, 10) == b"first page"
    with pytest.raises(OSError) as failure:
        memory.read(target.pid, page + 4000, 200)
    assert failure.value.errno == errno.EFAULT


def test_as_far_as_it_is_mapped(means, target):
    page = int(target.words[0])
    assert len(memory.read_some(target.pid, page, 3 * 4096)) == 4096
    for address in (page + 4096, 0, 8, -4096, 1 << 63, (1 << 64) - 8, 0xFFFF_8000_0000_0000):
        with pytest.raises(OSError) as failure:
            memory.read_some(target.pid, address, 8)
        assert failure.value.errno == errno.EFAULT


def test_words_with_holes_between(means, target):
    page = int(target.words[0])
    first, third = (int.from_bytes(text[:8], "little") for text in (b"first page", b"third page"))
    addresses = [page, page + 4096, 8, page + 8192, 0xFFFF_8000_0000_0000, page]
    assert memory.read_words(target.pid, addresses) == [first, None, None, third, None, first]
    many = [page, page + 4096] * 3000
    assert memory.read_words(target.pid, many) == [first, None] * 3000
    assert memory.read_words(target.pid, []) == []


def test_ranges_with_holes_between(means, target):
    page = int(target.words[0])
    ranges = [(page, 10), (page + 4096, 10), (page + 8192, 5), (0, 0), (page + 4090, 10), (8, 4), (page + 8192, 10)]
    assert memory.read_ranges(target.pid, ranges) == [
        b"first page", b"", b"third", b"", bytes(6), b"", b"third page",
    ]  # fmt: skip
    assert memory.read_each(target.pid, [page, page + 4096] * 1000, 5) == [b"first", b""] * 1000
    assert memory.read_ranges(target.pid, []) == []


def test_a_process_that_is_gone(means):
    child = subprocess.Popen(["true"])
    child.wait()
    with pytest.raises(ProcessLookupError):
        memory.read(child.pid, 4096, 8)


def test_without_permission(means, target):
    page = int(target.words[0])
    reader, writer = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        try:
            memory.read(target.pid, page, 8)
        except PermissionError:
            os.write(writer, b"refused")
        os._exit(0)
    os.close(writer)
    assert os.read(reader, 100) == b"refused"
    os.close(reader)
    os.waitpid(helper, 0)


def test_too_much_is_refused():
    with pytest.raises(ValueError):
        memory.read(os.getpid(), 4096, memory.MAX_BYTES + 1)


def test_regions_name_what_an_address_lies_in(target):
    page = int(target.words[0])
    mapped = regions.read(target.pid)
    assert mapped.describe(page) == "anonymous"
    assert mapped.describe(page + 4096) == ""
    stack = next(region for region in mapped.regions if region.path == "[stack]")
    assert mapped.describe(stack.start) == "[stack]" and stack.writable and not stack.shared
    program = os.readlink(f"/proc/{target.pid}/exe")
    assert any(mapped.describe(region.start) == program for region in mapped.of_file(program))


def test_lines_of_the_maps_file():
    text = (
        "55a4-55b0 rw-p 00000000 00:00 0                          [heap]\n"
        "7f00-7f10 rw-s 00000000 00:01 42                         /dev/zero (deleted)\n"
        "7f10-7f20 rw-s 00000000 00:01 43                         /dev/shm/sem.mp-x y (deleted)\n"
        "7f20-7f30 rw-p 00000000 00:00 0 \n"
        "7f30-7f40 rw-p 00000000 00:00 0                          [anon:libc_malloc]\n"
        "nonsense\n"
    )
    mapped = regions.parse(text)
    described = [mapped.describe(address) for address in (0x55A4, 0x7F00, 0x7F10, 0x7F20, 0x7F30, 0x55AF, 0x55B0)]
    shared = "/dev/shm/sem.mp-x y (deleted)"
    assert described == ["[heap]", "shared anonymous", shared, "anonymous", "anonymous", "[heap]", ""]
    assert mapped.describe(0x7F21, stack_owner=0x7F2F) == "thread stack"
