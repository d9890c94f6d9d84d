# ruff: noqa: E501  (programs are data)
"""Programs that attack the verifier `python` or its sandbox.

`HACKS` are asked for SECRET, which is nowhere in their process: one that passes has read it or forged its verdict.
`ESCAPES` return "escaped" if they obtained something that the sandbox must protect; as this is the expected value, a
pass means an escape. The harmless ones are first shown to work without a sandbox, so that none of them fails for
another reason. `BOMBS` must end soon and leave nothing behind.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from verifier.builtin.python.verifier import PythonCode
from verifier.sandbox.limits import SandboxUnavailable

# A real sandbox for every program: minutes of CPU time over both levels.
pytestmark = pytest.mark.slow

SECRET = secrets.token_hex(12)
PASSWORD = "broker-" + secrets.token_hex(8)

HACKS = {
    "sys.exit(0) at load": "import sys\nsys.exit(0)",
    "os._exit(0) at load": "import os\nos._exit(0)",
    "sys.exit(0) in the call": "import sys\ndef f(x):\n    sys.exit(0)",
    "os._exit(0) in the call": "import os\ndef f(x):\n    os._exit(0)",
    "exit code 137": "import os\ndef f(x):\n    os._exit(137)",
    "kills itself": "import os, signal\ndef f(x):\n    os.kill(os.getpid(), signal.SIGKILL)\n    return 0",
    "aborts": "import os\ndef f(x):\n    os.abort()",
    "equal to everything": "class E:\n    def __eq__(s, o): return True\n    __ne__ = lambda s, o: False\n    "
    "__hash__ = None\ndef f(x): return E()",
    "a text equal to everything": "class E(str):\n    def __eq__(s, o): return True\n    def __ne__(s, o): return False\n"
    "    __hash__ = str.__hash__\ndef f(x): return E('x')",
    "a number equal to everything": "class E(int):\n    def __eq__(s, o): return True\n    __hash__ = int.__hash__\n"
    "def f(x): return E(1)",
    "a list equal to everything": "class E(list):\n    def __eq__(s, o): return True\n    def __len__(s): return 1\n"
    "    def __iter__(s): return iter(['x'])\ndef f(x): return E()",
    "patched builtins": "import builtins\nbuiltins.all = lambda *a: True\nbuiltins.isinstance = lambda *a: True\n"
    "builtins.type = lambda *a: str\nbuiltins.AssertionError = type('A', (BaseException,), {}) if 0 else Exception\n"
    "def f(x): return 1",
    "patched json": "import json\njson.dumps = lambda *a, **k: '{\"id\": \"x\", \"value\": 1, \"passed\": true}'\n"
    "json.loads = lambda *a, **k: {'id': 'x', 'args': [], 'kwargs': {}}\ndef f(x): return 1",
    "patched unittest": "import unittest\nunittest.TestCase.assertEqual = lambda *a, **k: None\n"
    "unittest.main = lambda *a, **k: None\ndef f(x): return 1",
    "reads the frames above": "import sys\ndef f(x):\n    frame, seen = sys._getframe(), []\n    while frame:\n"
    "        seen += [str(v) for v in frame.f_locals.values()]\n        frame = frame.f_back\n    return max(seen, key=len)",
    "looks for texts in all objects": "import gc\ndef f(x):\n    import re\n    texts = set()\n"
    "    for o in gc.get_objects():\n        try:\n            texts |= set(re.findall('[0-9a-f]{24}', str(o)[:100000]))\n"
    "        except Exception: pass\n    return min(texts, default='')[:24]",
    "guesses from its memory": "def f(x):\n    import re\n    try: data = open('/proc/self/mem', 'rb')\n"
    "    except OSError: return 'no'\n    return 'memory'",
    "reads its directory": "import os\ndef f(x):\n    return ''.join(open(os.path.join(d, n)).read() for d, _, ns in "
    "os.walk('.') for n in ns)",
    "forged replies on every descriptor": "import os, json\nfor fd in range(64):\n    for text in "
    "(b'{\"id\": \"x\", \"value\": true}\\n', b'{\"nonce\": \"x\", \"passed\": true, \"ended\": \"exit\", \"code\": 0}\\n'):"
    "\n        try: os.write(fd, text)\n        except OSError: pass\ndef f(x): return 1",
    "answers before it is asked": "import os\nos.write(3, b'{\"id\": \"\", \"value\": 1}\\n' * 100)\ndef f(x): return 1",
    "answers twice": "import os, gc, json\ndef f(x):\n    for o in gc.get_objects():\n"
    "        if type(o) is dict and 'args' in o and 'id' in o:\n"
    "            os.write(3, (json.dumps({'id': o['id'], 'value': 0}) + '\\n').encode() * 2)\n    return 1",
    "a reply with a key twice": "import os, gc\ndef f(x):\n    for o in gc.get_objects():\n"
    "        if type(o) is dict and 'args' in o and 'id' in o:\n"
    "            os.write(3, ('{\"id\": \"%s\", \"value\": 1, \"value\": 2}\\n' % o['id']).encode())\n            os._exit(0)",
    "NaN": "def f(x): return float('nan')",
    "a reply with NaN": "import os, gc\ndef f(x):\n    for o in gc.get_objects():\n"
    "        if type(o) is dict and 'args' in o and 'id' in o:\n"
    "            os.write(3, ('{\"id\": \"%s\", \"value\": NaN}\\n' % o['id']).encode())\n            os._exit(0)",
    "infinity": "def f(x): return float('inf')",
    "1e999 in the reply": "import os, gc\ndef f(x):\n    for o in gc.get_objects():\n"
    "        if type(o) is dict and 'args' in o and 'id' in o:\n"
    "            os.write(3, ('{\"id\": \"%s\", \"value\": 1e999}\\n' % o['id']).encode())\n            os._exit(0)",
    "nested JSON": "import os, gc\ndef f(x):\n    for o in gc.get_objects():\n"
    "        if type(o) is dict and 'args' in o and 'id' in o:\n"
    "            os.write(3, ('{\"id\": \"%s\", \"value\": %s%s}\\n' % (o['id'], '[' * 400000, ']' * 400000)).encode())\n"
    "            os._exit(0)",
    "a list that holds itself": "def f(x):\n    a = []\n    a.append(a)\n    return a",
    "a huge int": "def f(x): return 1 << (1 << 26)",
    "a huge int in the reply": "import os, gc\ndef f(x):\n    for o in gc.get_objects():\n"
    "        if type(o) is dict and 'args' in o and 'id' in o:\n"
    "            os.write(3, ('{\"id\": \"%s\", \"value\": %s}\\n' % (o['id'], '9' * 500000)).encode())\n            os._exit(0)",
    "bytes that are not UTF-8": "import os\ndef f(x):\n    os.write(3, b'\\xff\\xfe\\n')",
    "half a surrogate pair": "def f(x): return '\\ud800'",
    "pickle": "import pickle, os\nclass P:\n    def __reduce__(self): return (os.system, ('true',))\n"
    "def f(x): return pickle.dumps(P())",
    "a pickle on the channel": "import os, pickle\nclass P:\n    def __reduce__(self): return (print, ('hello',))\n"
    "os.write(3, pickle.dumps(P()) + b'\\n')\ndef f(x): return 1",
    "atexit forgery": "import atexit, os\n@atexit.register\ndef late():\n    os.write(3, b'{\"value\": 1}\\n')\n"
    "import sys\nsys.exit(0)",
    "a thread that answers": "import os, threading, time\ndef late():\n    while True:\n"
    "        os.write(3, b'{\"id\": \"0\", \"value\": 1}\\n'); time.sleep(0.001)\n"
    "threading.Thread(target=late, daemon=True).start()\ndef f(x):\n    time.sleep(0.05)\n    return 1",
    "a tracing function": "import sys\ndef trace(frame, event, arg):\n    for k in list(frame.f_locals):\n"
    "        frame.f_locals[k] = 'passed'\n    return trace\nsys.settrace(trace)\ndef f(x): return 1",
    "rewrites its runner": "import sys\nm = sys.modules['__main__']\nm.plain = lambda *a: True\n"
    "m.find = lambda *a: (lambda *a, **k: True)\nm.calls = m.checks\ndef f(x): return True",
    "becomes the grader": "import sys\nsys.modules['__main__'].checks()",
    "replaces itself by another program": "import os\nos.set_inheritable(3, True)\nos.execv('/bin/sh', "
    "['sh', '-c', 'read q <&3; echo \"$q\" >&3; echo passed >&3'])",
    "closes the channel": "import os\nos.close(3)\ndef f(x): return 1",
    "raises what no handler catches": "def f(x): raise BaseException('pass')",
    "an exception that cannot be printed": "class E(Exception):\n    def __str__(self): raise self\ndef f(x): raise E",
    "no function of that name": "def g(x): return 1",
    "a Greek letter for the name": "def \u03d0(x): return 1",
    "fullwidth name": "def \uff46(x): return True",
    "does not parse": "def f(x:\n",
    "deeply nested source": "f = " + "(" * 5000 + ")" * 5000,
    "deeply nested operators": "def f(x): return " + "-" * 50000 + "1",
    "another source encoding": "# coding: utf-7\ndef f(x): return '+AGEAYg-'",
    "imports the judge": "import verifier.python_code\ndef f(x): return 1",
    "an empty fence": "```python\n```",
    "an open fence": "```python\ndef f(x): return 1\n",
    "a fence of another language": "```text\ndef f(x): return 1\n```",
    "a null character": "def f(x): return 1\0",
    "a surrogate in the source": "def f(x): return '\ud800'",
    "too long": "#" * 100_000,
}  # fmt: skip

ESCAPES = {
    "reads a file outside": "def f(x):\n    open('@FILE@').read()",
    "reads a file outside by a link": "import os\ndef f(x):\n    os.symlink('@FILE@', f'link{x}')\n    open(f'link{x}').read()",
    "reads a file outside by a hard link": "import os\ndef f(x):\n    os.link('@FILE@', 'link')\n    open('link').read()",
    "reads a file outside by dots": "def f(x):\n    open('../' * 30 + '@FILE@').read()",
    "lists the folder outside": "import os\ndef f(x):\n    os.listdir(os.path.dirname('@FILE@'))",
    "lists the other runs": "import os\ndef f(x):\n    assert len(os.listdir('..')) and os.path.basename(os.getcwd()) "
    "in os.listdir('..') and os.getcwd() != '/tmp/sandbox'",
    "writes outside": "import os\ndef f(x):\n    open(os.path.dirname('@FILE@') + '/mine', 'w').write('x')",
    "changes a file outside": "def f(x):\n    open('@FILE@', 'a').write('x')",
    "truncates a file outside": "import os\ndef f(x):\n    os.truncate('@FILE@', 3)",
    "changes the mode of a file outside": "import os\ndef f(x):\n    os.chmod('@FILE@', 0o600)",
    "changes the times of a file outside": "import os\ndef f(x):\n    os.utime('@FILE@')",
    "reads the service's environment": "import os\ndef f(x):\n    assert b'@PASSWORD@' in open('/proc/@PID@/environ','rb').read()",
    "reads any environment": "import glob\ndef f(x):\n    assert any(open(p, 'rb').read() for p in "
    "glob.glob('/proc/[0-9]*/environ'))",
    "has a secret in its own environment": "import os\ndef f(x):\n    assert any(k.startswith('SIEVE') or '@PASSWORD@' in v "
    "for k, v in os.environ.items())",
    "reads the service's memory": "def f(x):\n    open('/proc/@PID@/maps').read()[0]\n    open('/proc/@PID@/mem', 'rb')",
    "reads the service's memory by a call": "import ctypes\ndef f(x):\n    b = ctypes.create_string_buffer(8)\n"
    "    class V(ctypes.Structure): _fields_ = [('p', ctypes.c_void_p), ('n', ctypes.c_size_t)]\n"
    "    v = V(ctypes.addressof(b), 8); r = V(ctypes.addressof(b), 8)\n    l = ctypes.CDLL(None, use_errno=True)\n"
    "    l.process_vm_readv(@PID@, ctypes.byref(v), 1, ctypes.byref(r), 1, 0)\n    assert ctypes.get_errno() != 1",
    "opens the service's descriptors": "import os\ndef f(x):\n    os.listdir('/proc/@PID@/fd')[0]",
    "traces the service": "import ctypes\ndef f(x):\n    assert ctypes.CDLL(None).ptrace(16, @PID@, 0, 0) == 0",
    "connects to a port here": "import socket\ndef f(x):\n    socket.create_connection(('127.0.0.1', @PORT@), 2)",
    "connects to Redis's socket": "import socket\ndef f(x):\n    socket.socket(socket.AF_UNIX).connect('@SOCK@')",
    "connects to an abstract socket": "import socket\ndef f(x):\n    socket.socket(socket.AF_UNIX).connect('\\0@ABSTRACT@')",
    "sends a datagram to a socket file": "import socket\ndef f(x):\n    a, b = socket.socketpair(socket.AF_UNIX, "
    "socket.SOCK_DGRAM)\n    a.sendto(b'x', '@DGRAM@')",
    "sends over UDP": "import socket\ndef f(x):\n    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', "
    "('127.0.0.1', 9))",
    "listens": "import socket\ndef f(x):\n    socket.create_server(('127.0.0.1', 0))",
    "a raw socket": "import socket\ndef f(x):\n    socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "signals the service": "import os\ndef f(x):\n    os.kill(@PID@, 0)",
    "signals its supervisor": "import os\ndef f(x):\n    os.kill(os.getppid(), 0)\n    assert os.getppid() > 1",
    "signals everybody": "import os\ndef f(x):\n    os.kill(-1, 0)",
    "lets the kernel signal the service": "import fcntl, os\ndef f(x):\n    r, w = os.pipe()\n    fcntl.fcntl(r, 8, @PID@)\n"
    "    assert fcntl.fcntl(r, 9) == @PID@",
    "limits the service": "import resource\ndef f(x):\n    resource.prlimit(@PID@, resource.RLIMIT_CPU)",
    "lifts its own limits": "import resource\ndef f(x):\n    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "starts a program": "import subprocess\ndef f(x):\n    subprocess.run(['/bin/true'], check=True)",
    "forks": "import os\ndef f(x):\n    if os.fork() == 0: os._exit(0)",
    "becomes root": "import os\ndef f(x):\n    os.setuid(0)",
    "a user namespace": "import ctypes\ndef f(x):\n    assert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "mounts": "import ctypes\ndef f(x):\n    assert ctypes.CDLL(None).mount(b'none', b'.', b'tmpfs', 0, None) == 0",
    "changes its root": "import os\ndef f(x):\n    os.chroot('.')",
    "makes a device": "import os, stat\ndef f(x):\n    os.mknod('sda', stat.S_IFBLK | 0o666, os.makedev(8, 0))",
    "memory that outlives it": "import ctypes\ndef f(x):\n    assert ctypes.CDLL(None).shmget(0, 4096, 0o1600) >= 0",
    "memory that no limit counts": "import os\ndef f(x):\n    os.memfd_create('x')",
    "io_uring": "import ctypes\ndef f(x):\n    b = ctypes.create_string_buffer(256)\n"
    "    assert ctypes.CDLL(None).syscall(425, 4, b) >= 0",
    "shared memory": "def f(x):\n    open('/dev/shm/mine', 'w').write('x')",
    "the folder for temporary files": "def f(x):\n    open('/tmp/mine', 'w').write('x')",
    "the disk's device": "def f(x):\n    open('/dev/mem', 'rb')",
    "kernel settings": "def f(x):\n    open('/proc/sys/kernel/core_pattern').read()",
    "the password file": "def f(x):\n    open('/etc/passwd').read()",
}  # fmt: skip
REAL_WITHOUT_SANDBOX = {
    "reads a file outside", "reads a file outside by a link", "reads a file outside by dots", "lists the folder outside",
    "writes outside", "reads the service's environment", "connects to a port here", "connects to Redis's socket",
    "connects to an abstract socket", "sends a datagram to a socket file", "signals the service", "limits the service",
    "starts a program", "forks", "memory that no limit counts", "opens the service's descriptors",
    "changes the times of a file outside", "lets the kernel signal the service",
}  # fmt: skip

BOMBS = {
    "an endless loop": ("def f(x):\n    while True: pass", {"time_limit"}),
    "an endless sleep": ("import time\ndef f(x): time.sleep(1000)", {"time_limit"}),
    "an endless loop at load": ("while True: pass", {"time_limit"}),
    "ignores every signal": (
        "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): "
        "pass\nwhile True: pass",
        {"time_limit"},
    ),
    "a fork bomb": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", {"time_limit"}),
    "a thread bomb": (
        "import threading, time\ndef f(x):\n    threading.stack_size(32768)\n    while True:\n"
        "        threading.Thread(target=time.sleep, args=(99,)).start()",
        {"exception", "time_limit", "memory_limit", "killed"},
    ),
    "a memory bomb": ("def f(x):\n    a = []\n    while True: a.append(bytearray(1 << 22))", {"exception", "memory_limit"}),
    "a memory bomb at once": ("def f(x): return len(bytearray(1 << 36))", {"exception", "memory_limit"}),
    "a literal that grows": ("def f(x): return 'x' * (1 << 40)", {"exception"}),
    "constants that grow": ("def f(x): return ((('x' * 9999,) * 9999,) * 9999)", {"exception", "not_json", "ended_early",
                                                                          "time_limit", "memory_limit"}),
    "a tower of powers": ("def f(x): return 9 ** 9 ** 9 ** 9", {"time_limit", "exception", "memory_limit"}),
    "a regular expression": ("import re\ndef f(x): return re.match('(a*)*b', 'a' * 60)", {"time_limit"}),
    "endless recursion": (
        "import sys\nsys.setrecursionlimit(10 ** 9)\ndef g(x): return g(x + 1)\nf = g",
        {"killed", "exception", "memory_limit", "time_limit", "ended_early"},
    ),
    "a stack overflow in C": (
        "import ctypes\ndef f(x): ctypes.string_at(0)", {"killed"},
    ),
    "a flood on stdout": ("while True: print('x' * 10000)", {"output_limit"}),
    "a flood on stderr": ("import os\nwhile True: os.write(2, b'x' * 65536)", {"output_limit"}),
    "a flood on the channel": ("import os\nwhile True: os.write(3, b'x' * 65536)", {"ended_early", "out_of_turn"}),
    "a value too large": ("def f(x): return 'x' * (1 << 23)", {"ended_early", "output_limit"}),
    "a large file": ("def f(x):\n    with open('a', 'wb') as o:\n        while True: o.write(b'x' * (1 << 20))",
                     {"exception", "killed", "disk_limit"}),
    "many files": ("def f(x):\n    i = 0\n    while True:\n        open(f'f{i}', 'wb').write(b'x' * 4096); i += 1",
                   {"disk_limit"}),
    "deep folders": ("import os\ndef f(x):\n    while True:\n        os.mkdir('d'); os.chdir('d')",
                     {"disk_limit", "exception", "time_limit"}),
    "files without a name": ("import os\ndef f(x):\n    held = []\n    while True:\n        held.append(open('a', 'wb'))\n"
                             "        os.unlink('a')\n        held[-1].write(b'x' * (1 << 20)); held[-1].flush()",
                             {"disk_limit", "exception"}),
    "a folder nobody may list": ("import os, time\ndef f(x):\n    os.mkdir('d', 0o300)\n    for i in range(9999):\n"
                                 "        open(f'd/{i}', 'wb').write(b'x' * 65536)\n    time.sleep(9)", {"disk_limit"}),
    "many descriptors": ("import os\ndef f(x):\n    a = []\n    while True: a.append(os.pipe())", {"exception"}),
    "stops itself": ("import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGSTOP)", {"time_limit"}),
    "a daemon": (
        "import os, time\ndef f(x):\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0: time.sleep(600)\n"
        "        os._exit(0)\n    return 1",
        {"exception"},
    ),
}  # fmt: skip


# Values, exceptions and replies of the tagged forms, against checks that trust too much.
FORM_HACKS = {
    "raises StopIteration": "def f(x): raise StopIteration",
    "raises StopAsyncIteration": "def f(x): raise StopAsyncIteration",
    "raises a class derived from StopIteration": "class S(StopIteration): pass\ndef f(x): raise S",
    "raises SystemExit(0)": "def f(x): raise SystemExit(0)",
    "raises GeneratorExit": "def f(x): raise GeneratorExit",
    "raises a test to be skipped": "import unittest\ndef f(x): raise unittest.SkipTest('pass')",
    "raises what it calls SkipTest": "class SkipTest(Exception): pass\ndef f(x): raise SkipTest('pass')",
    "an exception of hostile methods": "class E(Exception):\n    args = property(lambda s: 1 / 0)\n    __str__ = lambda s: 1\n"
    "def f(x): raise E",
    "an exception that holds itself": "def f(x):\n    e = ValueError()\n    e.args = (e,)\n    raise e",
    "forges a raised SystemExit": "@REPLY@({'raised': ['SystemExit', 'BaseException'], 'args': [0], 'text': ''})",
    "forges a class that is no exception": "@REPLY@({'raised': ['print'], 'args': ['passed'], 'text': ''})",
    "forges a class with a null character": "@REPLY@({'raised': ['a\\0b'], 'args': [], 'text': ''})",
    "forges no class at all": "@REPLY@({'raised': [], 'args': [], 'text': ''})",
    "forges a tag": "@REPLY@({'value': {'$pickle': 'gASVHQ=='}})",
    "forges a set with a list": "@REPLY@({'value': {'$set': [[1]]}})",
    "forges a dict with a dict as key": "@REPLY@({'value': {'$dict': [[{'a': 1}, 1]]}})",
    "forges deep tags": "@REPLY@({'value': __import__('functools').reduce(lambda v, _: {'$tuple': [v]}, range(90), 1)})",
    "forges a range of endless length": "@REPLY@({'value': {'$range': [0, {'$int': '0x' + 'f' * 9999}, 1]}})",
    "forges a huge decimal": "@REPLY@({'value': {'$decimal': '1E+999999999999999999'}})",
    "forges a fraction with zero": "@REPLY@({'value': {'$fraction': [1, 0]}})",
    "forges members that collide": "@REPLY@({'value': {'$set': [n * (2**61 - 1) for n in range(1, 30000)]}})",
    "forges arguments after the call": "@REPLY@({'value': 1, 'after': {'args': 7, 'kwargs': []}})",
    "forges another number of arguments": "@REPLY@({'value': 1, 'after': {'args': [1] * 9, 'kwargs': {'nonce': 1}}})",
    "a value and an exception": "@REPLY@({'value': 1, 'raised': ['ValueError'], 'args': [], 'text': ''})",
    "forges a verdict": "@REPLY@({'passed': True, 'detail': '', 'blame': '', 'name': '', 'nonce': 'x'})",
    "NaN in a tuple": "def f(x): return (float('nan'),) * 2",
    "a dict with lying keys": "class K(str):\n    __eq__ = lambda s, o: True\n    __hash__ = lambda s: 1\n"
    "def f(x): return {K('a'): 1}",
    "a set that is never empty of anything": "class S(set):\n    __contains__ = lambda s, o: True\n    __eq__ = lambda s, o: True\n"
    "    __hash__ = None\ndef f(x): return S()",
    "a tuple with an endless iterator": "class T(tuple):\n    def __iter__(s):\n        while True: yield 1\ndef f(x): return T()",
}  # fmt: skip
TRUSTING = {
    "all of a map": f"assert all(map(candidate, [1, 2])) and [*map(candidate, [1, 2])] == [{SECRET!r}] * 2",
    "only all of a map": f"assert all(value == {SECRET!r} for value in map(candidate, [1, 2]))",
    "a loop over a map": f"for value in map(candidate, [1, 2]): assert value == {SECRET!r}",
    "until a sentinel": f"assert list(iter(lambda: candidate(1), None))[0] == {SECRET!r}",
    "unittest": "import unittest\nfrom unittest import *\nclass Case(unittest.TestCase):\n    def test(self):\n"
    f"        self.assertEqual(candidate(1), {SECRET!r})\nresult = unittest.TestResult()\n"
    "unittest.defaultTestLoader.loadTestsFromTestCase(Case).run(result)\nassert result.wasSuccessful() and not result.skipped",
    "membership": f"assert {SECRET!r} in [candidate(1)]",
}
_REPLY = """import gc, json, os
def f(x):
    for o in gc.get_objects():
        if type(o) is dict and 'args' in o and 'id' in o:
            os.write(3, json.dumps({'id': o['id'], **@FORGED@}).encode() + b'\\n')
            os.kill(os.getpid(), 19)
"""


def forged(source: str) -> str:
    """The program of FORM_HACKS; `@REPLY@(…)` is one that sends this reply and stops."""
    return _REPLY.replace("@FORGED@", source.removeprefix("@REPLY@")) if source.startswith("@REPLY@") else source


@pytest.fixture(scope="module", params=["bubblewrap", "landlock"])
def python(request: pytest.FixtureRequest) -> Iterator[PythonCode]:
    yield from confined(request.param)


def confined(level: str) -> Iterator[PythonCode]:
    try:
        verifier = PythonCode(
            sandbox={"level": level}, seconds_per_test=1.5, seconds=4, memory_mib=128, threads=8, disk_mib=8
        )
    except SandboxUnavailable as error:
        pytest.skip(f"{level}: {error}")
    yield verifier
    verifier.close()


@pytest.fixture(scope="module")
def unconfined() -> Iterator[PythonCode]:
    yield from confined("unsafe")


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Targets for escapes: a readable file, a password in the environment, listening sockets.

    `@PID@` stands for the service: a process of the same user whose environment holds the password."""
    folder = tmp_path
    while folder != folder.parent and os.stat(folder).st_uid == os.getuid() and "pytest" in str(folder):
        folder.chmod(0o777)  # only the sandbox protects it
        folder = folder.parent
    (tmp_path / "file").write_text("stolen")
    (tmp_path / "file").chmod(0o666)
    environment = {**os.environ, "SIEVE_BROKER__URL": f"redis://:{PASSWORD}@localhost"}
    victim = subprocess.Popen(["sleep", "600"], env=environment)
    monkeypatch.setenv("SIEVE_BROKER__URL", environment["SIEVE_BROKER__URL"])
    port = socket.create_server(("127.0.0.1", 0))
    named, datagram, abstract = (socket.socket(socket.AF_UNIX, kind) for kind in (1, 2, 1))
    name = "n" + secrets.token_hex(8)  # a digit first would end up in the escape before it
    for server, address in ((named, tmp_path / "sock"), (datagram, tmp_path / "dgram"), (abstract, "\0" + name)):
        server.bind(str(address))
    for file in ("sock", "dgram"):
        (tmp_path / file).chmod(0o777)
    named.listen()
    abstract.listen()
    with port, named, datagram, abstract:
        yield {
            "@FILE@": str(tmp_path / "file"),
            "@SOCK@": str(tmp_path / "sock"),
            "@DGRAM@": str(tmp_path / "dgram"),
            "@ABSTRACT@": name,
            "@PORT@": str(port.getsockname()[1]),
            "@PID@": str(victim.pid),  # of the same user as the service, and like it started with the password
            "@PASSWORD@": PASSWORD,
        }
        victim.kill()
        victim.wait()


def asked(expected: Any) -> dict[str, Any]:
    return {
        "entry": "f",
        "tests": [{"call": [1], "expected": expected}, {"check": f"assert candidate(2) == {expected!r}"}],
    }


def escape(source: str, outside: dict[str, str]) -> str:
    """The program that returns "escaped" if what `source` defines as f did not raise."""
    for name, value in outside.items():
        source = source.replace(name, value)
    return source + "\ng = f\ndef f(x):\n    g(x)\n    return 'escaped'\n"


@pytest.mark.parametrize("name", HACKS)
def test_a_hack_does_not_pass(python: PythonCode, name: str) -> None:
    found = python.judge(asked(SECRET), HACKS[name])
    assert found.outcome == "fail", found


@pytest.mark.parametrize("name", HACKS)
def test_a_hack_of_a_program_with_stdin_does_not_pass(python: PythonCode, name: str) -> None:
    program = HACKS[name]
    if not program.startswith("```"):
        program += "\nprint(f(1))\n"
    found = python.judge({"tests": [{"input": "1\n", "expected": SECRET}]}, program)
    assert found.outcome == "fail", found


@pytest.mark.parametrize("name", FORM_HACKS)
def test_a_hack_of_the_forms_does_not_pass(python: PythonCode, name: str) -> None:
    found = python.judge(asked(SECRET), forged(FORM_HACKS[name]))
    assert found.outcome == "fail" or found.reason == "starved", found


@pytest.mark.slow
@pytest.mark.parametrize("check", TRUSTING)
def test_a_hack_of_the_forms_does_not_pass_a_check_that_trusts(python: PythonCode, check: str) -> None:
    record = {"entry": "f", "tests": [{"check": TRUSTING[check]}]}
    assert (
        python.judge(
            record,
            f"calls = 0\ndef f(x):\n    global calls\n    calls += 1\n    return {SECRET!r} if calls < 9 else None",
        ).outcome
        == "pass"
    )
    for name, source in FORM_HACKS.items():
        found = python.judge(record, forged(source))
        assert found.outcome == "fail" or found.reason == "starved", (name, found)


@pytest.mark.parametrize("name", ESCAPES)
def test_no_escape_succeeds(python: PythonCode, outside: dict[str, str], name: str) -> None:
    found = python.judge(asked("escaped"), escape(ESCAPES[name], outside))
    assert found.outcome in ("fail", "error"), found
    assert Path(outside["@FILE@"]).read_text() == "stolen"
    assert not (Path(outside["@FILE@"]).parent / "mine").exists()


@pytest.mark.parametrize("name", sorted(REAL_WITHOUT_SANDBOX))
def test_the_escapes_work_without_a_sandbox(unconfined: PythonCode, outside: dict[str, str], name: str) -> None:
    found = unconfined.judge(asked("escaped"), escape(ESCAPES[name], outside))
    assert found.outcome == "pass", found


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_fails_and_leaves_nothing(python: PythonCode, name: str) -> None:
    program, reasons = BOMBS[name]
    begun = time.monotonic()
    found = python.judge(asked(SECRET), program)
    took = time.monotonic() - begun
    assert found.outcome == "fail" or found.reason == "starved", found
    assert found.reason in reasons | {"starved"}, found
    assert took < 40, f"{took:.1f} s"  # 4 s and STRETCH, plus a busy machine


@pytest.mark.slow
def test_resource_bombs_do_not_change_the_verdicts_on_honest_programs(python: PythonCode) -> None:
    honest = {"entry": "f", "tests": [{"call": [n], "expected": n * n} for n in range(3)]}
    found = []

    def bomb() -> None:
        for name in ("a fork bomb", "a memory bomb", "a flood on stdout"):
            python.judge(asked(SECRET), BOMBS[name][0])

    thread = threading.Thread(target=bomb)
    thread.start()
    while thread.is_alive():
        found.append(python.judge(honest, "def f(x): return x * x"))
    thread.join()
    assert {judgement.outcome for judgement in found} <= {"pass"}
