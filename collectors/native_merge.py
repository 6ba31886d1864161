"""Where a thread's native frames lie among its Python frames (pure), and which of them are worth a look.

Each call of the interpreter's evaluation function runs one Python frame, and from CPython 3.11 on one or more: how many
is known from the frames' own marks. Where the counts do not agree, only the frames inside of the innermost Python frame
are placed: what C code its line sits in is what matters most.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from stucktrace.facts import Frame, NativeStack

_EVALUATION = "_PyEval_EvalFrameDefault"
_DISPATCH = re.compile(
    r"_?Py(Object|Eval|Function|Vectorcall|CFunction|Cell|Type|Method|MethodDef)_"
    r"|_?PyObject|method_vectorcall|cfunction_|builtin_exec|slot_tp_|object_vacall|vectorcall_|method_call"
    r"|classmethoddescr|wrapperdescr|wrap_call|type_call|partial_|gen_|_call_"
)
"""How the interpreter gets from one Python call to the next. Functions of 3.8 to 3.14."""
_THREAD_START = re.compile(r"^(_start|main|__libc_start_(main|call_main).*|start_thread|clone3?|__clone3?)$")
_C_LIBRARY = re.compile(r"/(libc|libpthread|ld)[-.][^/]*$|/ld-(linux|musl)[^/]*$")


def merged(
    tid: int,
    native: Sequence[Frame],
    ended: str,
    *,
    python_frames: int,
    calls: Sequence[int] | None,
    interpreter: str,
) -> NativeStack:
    """`calls`: how many Python frames each call of the evaluation function runs, innermost first; None: not known.
    `interpreter`: the mapped file that holds it."""
    runs = [index for index, frame in enumerate(native) if _is_evaluation(frame, interpreter)]
    if calls is None or len(calls) != len(runs) or sum(calls) != python_frames:
        return _innermost(tid, native, ended, python_frames, interpreter)
    frames: list[Frame] = []
    inside: list[int] = []
    done = python_inside = 0
    for index, frame in enumerate(native):
        if done < len(runs) and index == runs[done]:
            python_inside += calls[done]
            done += 1
        elif _worth(frame, interpreter, outside=done == len(runs) and bool(runs)):
            frames.append(frame)
            inside.append(python_inside)
    return NativeStack(tid, tuple(frames), tuple(inside), ended)


def _innermost(tid: int, native: Sequence[Frame], ended: str, python_frames: int, interpreter: str) -> NativeStack:
    """Frames up to the first that may run Python frames: an evaluation, or an unknown function of the interpreter."""
    kept: list[Frame] = []
    why = ended
    for frame in native:
        unknown = frame.file == interpreter and "+0x" in frame.function
        if python_frames and (unknown or _is_evaluation(frame, interpreter)):
            why = why or "the native frames between the Python frames could not be placed"
            break
        if _worth(frame, interpreter, outside=False):
            kept.append(frame)
    return NativeStack(tid, tuple(kept), (0,) * len(kept), why)


def _is_evaluation(frame: Frame, interpreter: str) -> bool:
    return frame.function.startswith(_EVALUATION) and (not interpreter or frame.file == interpreter)


def _worth(frame: Frame, interpreter: str, *, outside: bool) -> bool:
    """Not the interpreter's own way from call to call, nor how threads and programs begin."""
    if _THREAD_START.match(frame.function):
        return False
    if frame.file == interpreter:
        return not outside and "+0x" not in frame.function and not _DISPATCH.match(frame.function)
    return not (outside and _C_LIBRARY.search(frame.file))
