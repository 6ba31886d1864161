"""The lock behind each futex wait of live processes: its kind, where it lies, who owns it."""

import os
import signal
import sys
from pathlib import Path

import pytest
from stucktrace.collectors import locks, python, source_lines, threads
from stucktrace.collectors.process import read_process
from stucktrace.errors import CollectorError
from stucktrace.facts import Frame, Relative, ThreadFact

from tests.harness import pythons, targets
from tests.harness.kernel import tids, wait_until

PYTHON_LOCKS = """
import sys, threading, time
try:
    from queue import SimpleQueue
except ImportError:
    SimpleQueue = None
lock = threading.Lock()
lock.acquire()
recursive = threading.RLock()
event = threading.Event()
def holds():
    with recursive:
        with recursive:
            event.set()
            time.sleep(600)
def acquires(): lock.acquire()
def acquires_with_a_timeout(): lock.acquire(True, 600)
def enters(): recursive.__enter__()
def enters_with_a_timeout(): recursive.acquire(True, 600)
def waits(): threading.Event().wait()
def waits_with_a_timeout(): threading.Event().wait(600)
def takes(): SimpleQueue().get()
def start(function):
    thread = threading.Thread(target=function, name=function.__name__)
    thread.daemon = True
    thread.start()
    return thread
holder = start(holds)
event.wait()
def joins(): holder.join()
functions = [acquires, acquires_with_a_timeout, enters, enters_with_a_timeout, waits, waits_with_a_timeout, joins]
functions += [takes] if SimpleQueue else []
for function in functions:
    start(function)
print("ready", len(functions))
time.sleep(600)
"""

C_LOCKS = """
import ctypes, sys, threading, time
libc = ctypes.CDLL(None)
def zeroed(size=64): return ctypes.create_string_buffer(size)
def mutex(**attributes):
    attribute, made = zeroed(8), zeroed()
    libc.pthread_mutexattr_init(attribute)
    for name, value in attributes.items():
        assert getattr(libc, "pthread_mutexattr_set" + name)(attribute, value) == 0
    assert libc.pthread_mutex_init(made, attribute) == 0
    return made
plain, recursive, inherit, robust = mutex(), mutex(type=1), mutex(protocol=1), mutex(robust=1)
errorcheck, adaptive = mutex(type=2), mutex(type=3)
written, read = zeroed(), zeroed()
for held in (recursive, recursive, inherit, robust, errorcheck, adaptive):
    libc.pthread_mutex_lock(held)
libc.pthread_rwlock_wrlock(written)
libc.pthread_rwlock_rdlock(read)
condition, guard, semaphore = zeroed(), mutex(), zeroed()
def locks_twice(): libc.pthread_mutex_lock(plain); libc.pthread_mutex_lock(plain)
def locks_recursive(): libc.pthread_mutex_lock(recursive)
def locks_inherit(): libc.pthread_mutex_lock(inherit)
def locks_robust(): libc.pthread_mutex_lock(robust)
def locks_errorcheck(): libc.pthread_mutex_lock(errorcheck)
def locks_adaptive(): libc.pthread_mutex_lock(adaptive)
def locks_until(): libc.pthread_mutex_timedlock(errorcheck, (ctypes.c_long * 2)(int(time.time()) + 600, 0))
def reads(): libc.pthread_rwlock_rdlock(written)
def writes(): libc.pthread_rwlock_wrlock(written)
def writes_what_is_read(): libc.pthread_rwlock_wrlock(read)
def waits(): libc.pthread_mutex_lock(guard); libc.pthread_cond_wait(condition, guard)
def posts(): libc.sem_wait(semaphore)
BODY = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
body = BODY(lambda _: time.sleep(600) or 0)
joined = ctypes.c_ulong()
libc.pthread_create(ctypes.byref(joined), None, body, None)
def joins(): libc.pthread_join(ctypes.c_ulong(joined.value), None)
functions = [locks_twice, locks_recursive, locks_inherit, locks_robust, locks_errorcheck, locks_adaptive, locks_until,
             reads, writes, writes_what_is_read, waits, posts, joins]
for function in functions:
    threading.Thread(target=function, name=function.__name__, daemon=True).start()
print("ready", len(functions))
time.sleep(600)
"""

FORKS = """
import ctypes, os, sys, threading, time
libc = ctypes.CDLL(None)
mutex, lock, recursive, held = ctypes.create_string_buffer(64), threading.Lock(), threading.RLock(), threading.Event()
def hold():
    recursive.acquire()
    lock.acquire()
    libc.pthread_mutex_lock(mutex)
    held.set()
def holds():
    hold()
    time.sleep(600)
holder, waiter = sys.argv[1:3]
if holder == "the forking thread":
    hold()
else:
    threading.Thread(target=holds, daemon=True).start()
    held.wait()
child = os.fork()
if child == 0:
    wait = {"mutex": lambda: libc.pthread_mutex_lock(mutex), "rlock": recursive.acquire, "lock": lock.acquire}[waiter]
    if sys.argv[3:] == ["new thread first"]:
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    if sys.argv[3:] == ["in a thread"]:
        threading.Thread(target=wait, daemon=True).start()
        time.sleep(600)
    wait()
print("ready", child)
time.sleep(600)
"""

PROCESS_LOCKS = """
import multiprocessing, time
context = multiprocessing.get_context("fork")
lock = context.Lock()
lock.acquire()
child = context.Process(target=lock.acquire, daemon=True)
child.start()
print("ready", child.pid)
time.sleep(600)
"""

SHARED_MUTEX = """
import ctypes, mmap, os, time
libc = ctypes.CDLL(None)
shared = mmap.mmap(-1, 4096)
mutex = ctypes.c_char.from_buffer(shared)
attribute = ctypes.create_string_buffer(8)
libc.pthread_mutexattr_init(attribute)
libc.pthread_mutexattr_setpshared(attribute, 1)
libc.pthread_mutex_init(ctypes.byref(mutex), attribute)
libc.pthread_mutex_lock(ctypes.byref(mutex))
child = os.fork()
if child == 0:
    libc.pthread_mutex_lock(ctypes.byref(mutex))
print("ready", child)
time.sleep(600)
"""


WITH_BLOCKS = """
import queue, threading, time
waiting_line = queue.Queue()
a, b, again, sometimes, guarded, bare = (threading.Lock() for _ in range(6))
condition = threading.Condition(guarded)
meet = threading.Barrier(2)
taken, held = threading.Event(), threading.Event()
def takes_a_then_b():
    with a:
        meet.wait()
        try:
            with b: pass
        except ValueError: pass
def takes_b_then_a():
    with b:
        meet.wait()
        with a: pass
def takes_it_twice():
    with again:
        for _ in range(3):
            with sometimes: pass
        takes_it_again()
def takes_it_again():
    with again: pass
def waits_on_the_condition():
    with guarded:
        taken.set()
        condition.wait()
def holds_after_it():
    taken.wait()
    with guarded:
        held.set()
        time.sleep(600)
def wants_what_both_entered():
    held.wait()
    with guarded: pass
bare.acquire()
def wants_what_nobody_entered():
    with bare: pass
def holds_the_queue():
    with waiting_line.not_empty:
        time.sleep(600)
def puts():
    while not waiting_line.mutex.locked(): time.sleep(0.01)
    waiting_line.put(1)
functions = [holds_the_queue, puts, takes_a_then_b, takes_b_then_a, takes_it_twice, waits_on_the_condition, holds_after_it,
             wants_what_both_entered, wants_what_nobody_entered]
for function in functions:
    threading.Thread(target=function, name=function.__name__, daemon=True).start()
print("ready", len(functions) - 2)
time.sleep(600)
"""

IMPORTS = """
import os, sys, threading, time
sys.path.insert(0, sys.argv[1])
sys.begun = threading.Event()
def imports():
    import slow_module
def imports_too():
    import slow_module
def start(function):
    thread = threading.Thread(target=function)
    thread.daemon = True
    thread.start()
start(imports)
sys.begun.wait()
child = os.fork()
if child == 0:
    import slow_module
start(imports_too)
print("ready", child)
time.sleep(600)
"""

INHERITS = """
import os, sys, threading, time
lock, recursive, held = threading.Lock(), threading.RLock(), threading.Event()
def holds():
    with lock, recursive:
        held.set()
        time.sleep(600)
threading.Thread(target=holds, daemon=True).start()
held.wait()
child = os.fork()
if child == 0:
    if sys.argv[2:] == ["new thread first"]:
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    if sys.argv[2:] == ["new thread holds"]:
        held.clear()
        recursive._at_fork_reinit()
        lock = threading.Lock()
        threading.Thread(target=holds, daemon=True).start()
        held.wait()
    with {"lock": lock, "rlock": recursive}[sys.argv[1]]: pass
print("ready", child)
time.sleep(600)
"""


def collect(pid, relatives=()):
    process, seen = pythons.process_of(pid), pythons.threads_of(pid)
    stacks = python.collect(process, seen, native=False, show_locals=False)
    names = {thread.tid: thread.frames[-4 if len(thread.frames) > 4 else 0].function for thread in stacks.threads}
    return locks.collect(process, seen, stacks, relatives), stacks, names


def by_function(pid, relatives=()):
    """The name of the target's own function -> the lock that its thread waits for."""
    facts, stacks, _ = collect(pid, relatives)
    functions = {
        thread.tid: {frame.function for frame in thread.frames if frame.file == "<string>"} for thread in stacks.threads
    }
    return {name: fact for fact in facts for name in functions[fact.waiter_tid]}


def parent_of(pid):
    process = pythons.process_of(pid)
    return (Relative(process.ppid, "parent", "python", "S", "python", 0),)


def waiting(target, count):
    pythons.until(lambda: pythons.settled(target.pid, "futex", count), f"{count} threads wait")


@pytest.mark.parametrize("interpreter", pythons.interpreters(), ids=pythons.name_of)
def test_cpythons_locks(interpreter):
    with pythons.run(PYTHON_LOCKS, python=interpreter) as target:
        waiting(target, int(target.words[0]))
        found = by_function(target.pid)
        holder = next(
            thread
            for thread in collect(target.pid)[1].threads
            if any(frame.function == "holds" for frame in thread.frames)
        )
    for name in ("acquires", "acquires_with_a_timeout"):
        assert found[name].kind == "lock"
    assert found["acquires"].address == found["acquires_with_a_timeout"].address
    for name in ("enters", "enters_with_a_timeout"):
        fact = found[name]
        assert (fact.kind, fact.count) == ("rlock", 2)
        assert fact.owner is not None and (fact.owner.state, fact.owner.tid) == ("alive", holder.tid)
    for name in ("waits", "waits_with_a_timeout"):
        assert (found[name].kind, found[name].owner) == ("lock", None)
    assert found["joins"].kind in ("lock", "join")
    if found["joins"].kind == "join":
        assert found["joins"].owner.tid == holder.tid
    if "takes" in found:
        assert (found["takes"].kind, found["takes"].owner) == ("semaphore", None)
        assert "SimpleQueue" in found["takes"].note
    assert all(fact.mapping in ("[heap]", "anonymous") and not fact.shared for fact in found.values())


def test_glibcs_locks():
    with pythons.run(C_LOCKS) as target:
        waiting(target, int(target.words[0]))
        found = by_function(target.pid)
    assert {name: fact.kind for name, fact in found.items()} == {
        "locks_twice": "pthread-mutex",
        "locks_recursive": "pthread-mutex",
        "locks_errorcheck": "pthread-mutex",
        "locks_adaptive": "pthread-mutex",
        "locks_until": "pthread-mutex",
        "locks_inherit": "pi-mutex",
        "locks_robust": "robust-mutex",
        "reads": "rwlock",
        "writes": "rwlock",
        "writes_what_is_read": "rwlock",
        "waits": "condition",
        "posts": "semaphore",
        "joins": "join",
    }
    assert found["locks_twice"].owner.state == "self"
    assert found["locks_twice"].owner.tid == found["locks_twice"].waiter_tid
    for name in (
        "locks_recursive",
        "locks_inherit",
        "locks_robust",
        "locks_errorcheck",
        "locks_adaptive",
        "locks_until",
    ):
        assert (found[name].owner.state, found[name].owner.tid) == ("alive", target.pid), name
    for name in ("reads", "writes"):
        assert (found[name].owner.state, found[name].owner.tid) == ("alive", target.pid), name
    assert found["locks_recursive"].count == 2
    assert found["joins"].owner.state == "alive"
    for name in ("writes_what_is_read", "waits", "posts"):
        assert found[name].owner is None


def test_who_waits_for_the_gil():
    code = "import ctypes, threading, time\n" + (
        "def holds():\n    print('ready')\n    ctypes.PyDLL(None).sleep(600)\n"
        "threading.Thread(target=holds, daemon=True).start()\nwhile True:\n    time.sleep(0.01)\n"
    )
    with pythons.run(code) as target:
        pythons.until(lambda: pythons.in_call(target.pid, "futex"), "the main thread waits for the GIL")
        pythons.until(
            lambda: [fact.kind for fact in collect(target.pid)[0]] == ["gil"], "two readings that agree on the GIL"
        )


def inherited(holder, waiter, *how):
    with pythons.run(FORKS, holder, waiter, *how) as target:
        child = int(target.words[0])
        pythons.until(lambda: pythons.settled(child, "futex"), "the child waits")
        parents = {thread.ns_tid for thread in pythons.threads_of(target.pid)}
        (fact,) = collect(child, parent_of(child))[0]
        return fact, child, parents - {target.pid}


@pytest.mark.parametrize("waiter", ["mutex", "rlock"])
def test_a_lock_of_the_parents_thread_is_nobodys_in_the_child(waiter):
    fact, _, (holder,) = inherited("a thread", waiter)
    assert fact.owner.state == "absent" and fact.owner.parent_thread
    assert fact.owner.ns_tid == holder and fact.owner.name


@pytest.mark.parametrize("waiter", ["mutex", "rlock"])
def test_a_lock_of_the_forking_thread_belongs_to_the_childs_first(waiter):
    fact, child, _ = inherited("the forking thread", waiter, "in a thread")
    assert (fact.owner.state, fact.owner.tid) == ("alive", child)


def test_a_reused_pthread_address_is_not_taken_for_the_owner():
    """The child's new thread has the stack that the parent's thread had: the RLock's owner field fits both."""
    fact, _, (holder,) = inherited("a thread", "rlock", "new thread first")
    assert fact.kind == "rlock"
    assert fact.owner.state in ("unknown", "absent") and fact.owner.parent_thread
    assert fact.owner.tid is None or fact.owner.tid != holder


def test_without_the_parent_the_owner_is_still_absent():
    with pythons.run(FORKS, "a thread", "mutex") as target:
        child = int(target.words[0])
        pythons.until(lambda: pythons.settled(child, "futex"), "the child waits")
        os.kill(target.pid, signal.SIGKILL)
        target.wait()
        (fact,) = collect(child, ())[0]
    assert fact.owner.state == "absent" and not fact.owner.parent_thread


def test_a_process_lock_is_a_shared_semaphore_without_owner():
    with pythons.run(PROCESS_LOCKS) as target:
        child = int(target.words[0])
        pythons.until(lambda: pythons.settled(child, "futex"), "the child waits")
        (fact,) = collect(child, parent_of(child))[0]
    assert (fact.kind, fact.owner, fact.shared) == ("process-semaphore", None, True)
    assert fact.mapping.startswith("/dev/shm/")


def test_a_shared_mutex_names_the_process_that_holds_it():
    with pythons.run(SHARED_MUTEX) as target:
        child = int(target.words[0])
        pythons.until(lambda: pythons.settled(child, "futex"), "the child waits")
        (fact,) = collect(child, parent_of(child))[0]
        assert (fact.kind, fact.shared, fact.mapping) == ("pthread-mutex", True, "shared anonymous")
        assert (fact.owner.state, fact.owner.pid) == ("alive", target.pid)


def test_a_target_in_another_pid_namespace():
    with pythons.run(PYTHON_LOCKS, before=("unshare", "--pid", "--fork", "--kill-child")) as outer:
        pid = int(Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()[0])
        pythons.until(lambda: pythons.settled(pid, "futex", int(outer.words[0])), "all threads wait")
        found = by_function(pid)
        kernel = {thread.tid: thread for thread in pythons.threads_of(pid)}
    owner = found["enters"].owner
    assert owner.state == "alive" and owner.ns_tid < owner.tid and kernel[owner.tid].ns_tid == owner.ns_tid


def test_two_thousand_waiters():
    code = (
        "import threading, time\nlock = threading.RLock()\nlock.acquire()\nthreading.stack_size(65536)\n"
        "for _ in range(2000):\n    threading.Thread(target=lock.acquire, daemon=True).start()\n"
        "print('ready')\ntime.sleep(600)\n"
    )
    with pythons.run(code) as target:
        process = pythons.process_of(target.pid)
        pythons.until(lambda: pythons.settled(target.pid, "futex", 2000), "all wait")
        seen = threads.collect([target.pid], None)[target.pid]
        facts = locks.collect(process, seen, python.collect(process, seen, native=False, show_locals=False))
    assert len(facts) == 2000
    assert {(fact.kind, fact.owner.tid) for fact in facts} == {("rlock", target.pid)}


def test_a_target_that_ends_meanwhile():
    with pythons.run(PYTHON_LOCKS) as target:
        waiting(target, int(target.words[0]))
        process, seen = pythons.process_of(target.pid), pythons.threads_of(target.pid)
    with pytest.raises(CollectorError) as failure:
        locks.collect(process, seen, None)
    assert "ended" in failure.value.missing.because


def test_without_permission_the_remedy_is_named():
    with pythons.run(PYTHON_LOCKS) as target:
        waiting(target, int(target.words[0]))
        process, seen = pythons.process_of(target.pid), pythons.threads_of(target.pid)
        reader, writer = os.pipe()
        helper = os.fork()
        if helper == 0:
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            try:
                locks.collect(process, seen, None)
            except CollectorError as error:
                os.write(writer, error.missing.remedy.encode())
            os._exit(0)
        os.close(writer)
        assert b"CAP_SYS_PTRACE" in os.read(reader, 1000)
        os.close(reader)
        os.waitpid(helper, 0)


@pytest.mark.parametrize("interpreter", pythons.interpreters(), ids=pythons.name_of)
def test_who_imports_the_module(interpreter, tmp_path):
    (tmp_path / "slow_module.py").write_text("import sys, time\nsys.begun.set()\ntime.sleep(600)\n")
    with pythons.run(IMPORTS, str(tmp_path), python=interpreter, before=("env", "PYTHONWARNINGS=ignore")) as target:
        child = int(target.words[0])
        pythons.until(lambda: pythons.settled(child, "futex"), "the child waits")
        pythons.until(lambda: pythons.settled(target.pid, "futex"), "the parent's thread waits")
        (here,) = collect(target.pid)[0]
        (inherited,) = collect(child, parent_of(child))[0]
        frames = collect(target.pid)[1].threads
    (importer,) = (t.tid for t in frames if any(frame.function == "imports" for frame in t.frames))
    assert (here.owner.state, here.owner.tid) == ("alive", importer)
    assert (inherited.owner.state, inherited.owner.ns_tid) == ("absent", importer)
    assert inherited.owner.parent_thread and "import" in inherited.note
    assert here.path == inherited.path == "_ModuleLock('slow_module')"


def with_blocks_known(interpreter):
    version = pythons.name_of(interpreter)
    return version == "debian" or tuple(map(int, version.split(".")[:2])) >= (3, 8)


@pytest.mark.parametrize("interpreter", [*filter(with_blocks_known, pythons.interpreters())], ids=pythons.name_of)
def test_who_is_inside_a_with_block_of_the_lock(interpreter):
    with pythons.run(WITH_BLOCKS, python=interpreter) as target:
        waiting(target, int(target.words[0]))
        found = by_function(target.pid)
        tids = {name: fact.waiter_tid for name, fact in found.items()}
        names = {frame.function: thread.tid for thread in collect(target.pid)[1].threads for frame in thread.frames}
    owners = {name: (fact.owner.state, fact.owner.tid) if fact.owner else None for name, fact in found.items()}
    assert owners["takes_a_then_b"] == ("alive", tids["takes_b_then_a"])
    assert owners["takes_b_then_a"] == ("alive", tids["takes_a_then_b"])
    assert owners["takes_it_again"] == ("self", tids["takes_it_again"])
    # It gave the lock back for the time of its wait, and waits on a lock of its own.
    assert owners["wants_what_both_entered"] == ("alive", names["holds_after_it"])
    assert owners["waits_on_the_condition"] is None
    assert owners["puts"] == ("alive", names["holds_the_queue"])
    assert found["puts"].path in ("Queue.not_full", "self.not_full")
    assert owners["wants_what_nobody_entered"] is None
    assert {fact.kind for fact in found.values()} == {"lock"}


@pytest.mark.parametrize("kind", ["lock", "rlock"])
@pytest.mark.parametrize("how", [(), ("new thread first",), ("new thread holds",)], ids="-".join)
def test_a_block_of_the_parents_thread(kind, how):
    with pythons.run(INHERITS, kind, *how) as target:
        child = int(target.words[0])
        pythons.until(lambda: pythons.settled(child, "futex"), "the child waits")
        (fact,) = collect(child, parent_of(child))[0]
        (holder,) = {thread.ns_tid for thread in pythons.threads_of(target.pid)} - {target.pid}
    assert fact.kind == kind
    if how == ("new thread holds",):
        assert fact.owner.state == "alive" and fact.owner.tid not in (child, None)
    else:
        assert fact.owner.state == "absent" and fact.owner.parent_thread and fact.owner.ns_tid == holder


NAMED = """import threading
class Cache:
    def __init__(self):
        self.guard = threading.Lock()
    def read(self):
        with self.guard:
            pass
cache = Cache()
cache.guard.acquire()
print("ready")
cache.read()
"""


def test_the_lock_has_the_name_that_the_code_gives_it(tmp_path):
    (tmp_path / "app.py").write_text(NAMED)
    code = "import sys; exec(compile(open(sys.argv[1]).read(), sys.argv[1], 'exec'))"
    with pythons.run(code, str(tmp_path / "app.py")) as target:
        waiting(target, 1)
        (fact,) = collect(target.pid)[0]
    assert fact.path in ("Cache.guard", "self.guard")


def test_source_is_read_inside_the_targets_root_only(tmp_path):
    """A link that points out of the target's root is resolved inside it; a FIFO in its place does not hang us."""
    inside = tmp_path / "root"
    (inside / "app").mkdir(parents=True)
    (inside / "app" / "app.py").symlink_to(tmp_path / "secret.py")
    (tmp_path / "secret.py").write_text(NAMED)
    os.mkfifo(inside / "app" / "fifo.py")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.chroot(inside)
        os.write(writer, b"ready")
        signal.pause()
        os._exit(0)
    try:
        assert os.read(reader, 5) == b"ready"
        for path in ("/app/app.py", "/app/fifo.py", "/app/none.py", "/proc/self/environ"):
            assert source_lines.lock_name(child, Frame("read", path, 6), {}) == ""
        (inside / "app" / "app.py").unlink()
        (inside / "app" / "app.py").write_text(NAMED)
        assert source_lines.lock_name(child, Frame("Cache.read", "/app/app.py", 6), {}) == "Cache.guard"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)


BUSY_MUTEX = """
import ctypes, threading, time
libc = ctypes.CDLL(None)
mutex = ctypes.create_string_buffer(64)
def takes_turns():
    while True:
        libc.pthread_mutex_lock(mutex)
        time.sleep(0.05)
        libc.pthread_mutex_unlock(mutex)
        time.sleep(0.01)
for _ in range(3):
    threading.Thread(target=takes_turns, daemon=True).start()
takes_turns()
"""


def test_one_who_ran_since_the_look_has_no_owner_to_wait_for():
    """Between the look at the threads and that at the memory it may have become the owner itself."""
    with targets.start([sys.executable, "-c", BUSY_MUTEX], ready=False) as target:
        wait_until(lambda: len(tids(target.pid)) == 4, "its threads")
        process = read_process(target.pid)

        def waiting() -> dict[int, ThreadFact]:
            facts = threads.collect([target.pid], None)[target.pid]
            return {fact.tid: fact for fact in facts if fact.syscall and fact.syscall.name == "futex"}

        def wait_again(waiters: dict[int, ThreadFact]) -> set[int]:
            return {tid for tid, fact in waiting().items() if tid in waiters and waiters[tid].switches != fact.switches}

        for _ in range(20):
            looked = waiting()
            wait_until(lambda looked=looked: not looked or wait_again(looked), "one who waits again")
            late = wait_again(looked)
            found = locks.collect(process, tuple(looked.values()), None)
            assert not [fact for fact in found if fact.owner and fact.waiter_tid in late]
