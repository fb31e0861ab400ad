"""What a processor says of bfloat16, in the words of Linux on x86 and on Arm."""

import os
import platform
import subprocess
import sys

import pytest

from kargah.spec.precision import cpu_has_native_bf16, flags_tell_bf16

X86 = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu avx2 {}\n\nprocessor\t: 1\nflags\t\t: fpu\n"
ARM = "processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd {} i8mm\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (X86.format("avx512_bf16"), True),
        (X86.format("amx_bf16 amx_tile"), True),
        (X86.format("avx512f avx512_vnni"), False),
        (ARM.format("bf16"), True),
        (ARM.format("sve2"), False),
        # Arm's emulation on another name, a flag inside another, a file that says nothing.
        (ARM.format("svebf16"), False),
        ("model name\t: bf16\n", False),
        ("", False),
    ],
)
def test_flags_of_the_first_processor_tell(text: str, expected: bool) -> None:
    assert flags_tell_bf16(text) is expected


@pytest.mark.skipif(platform.system() != "Linux", reason="asks lscpu")
def test_answer_for_this_machine_is_what_its_kernel_says() -> None:
    environment = {**os.environ, "LC_ALL": "C"}
    flags = subprocess.run(["lscpu"], capture_output=True, text=True, check=True, env=environment).stdout.split()
    assert cpu_has_native_bf16() is bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))


def test_nothing_heavy_is_imported_to_ask() -> None:
    program = "import sys, kargah.spec.precision as p; p.cpu_has_native_bf16(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
