"""A VM with two disks, made through hostd, powered on with the real vmx and QEMU: its Linux guest sees them."""

import asyncio
import shutil
import sys
from pathlib import Path

import pytest

from images.build import build_guest
from images.cmdline import kernel_command_line
from images.guest_output import READY
from proto.vim.v1 import vm_config_pb2
from proto.vim.v1.vm_config_pb2 import VirtualDisk
from runtime.faults import FileLocked, ResourceInUse
from tests.framework.hostd_process import MIB, HostdHost, small_vm

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.qemu,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="no QEMU here"),
]
_BOOT_DEADLINE_S = 90.0
_ANSWER_DEADLINE_S = 30.0


async def said(log: Path, word: str, deadline_s: float) -> str:
    """What the guest's console has said, as soon as `word` is in it."""
    deadline = asyncio.get_running_loop().time() + deadline_s
    while True:
        text = log.read_text(errors="replace") if log.exists() else ""
        if word in text:
            return text
        assert asyncio.get_running_loop().time() < deadline, f"no {word!r} in: {text[-2000:]}"
        await asyncio.sleep(0.1)


async def test_guest_sees_a_thin_and_a_thick_disk_and_its_writes_are_in_their_extents(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    (shared / "images").mkdir(parents=True)
    image = await asyncio.to_thread(build_guest)
    shutil.copy(image.kernel, shared / "images" / "vmlinuz")
    shutil.copy(image.initrd, shared / "images" / "initrd.img")
    host = HostdHost(tmp_path, 41, shared, vmx_command=f"{sys.executable} -m vmx")
    config = small_vm("linux", ram_mib=256)
    config.boot.kernel = "[shared] images/vmlinuz"
    config.boot.initrd = "[shared] images/initrd.img"
    config.boot.kernel_command_line = kernel_command_line(stamper_mib=4, rate=0)
    config.disks.append(VirtualDisk(capacity_bytes=48 * MIB))
    config.disks.append(
        VirtualDisk(capacity_bytes=16 * MIB, format=vm_config_pb2.DISK_FORMAT_THICK_LAZY_ZEROED)
    )
    try:
        await host.start()
        vm = await host.create(config)
        await host.call("PowerOnVm", vm.uuid)
        log = shared / "linux" / "console.log"
        await said(log, READY, _BOOT_DEADLINE_S)
        reader, writer = await asyncio.open_unix_connection(str(host.vmx_directory(vm.uuid) / "console.sock"))
        writer.write(b"\n")
        await said(log, "/ # \x1b[6n", _ANSWER_DEADLINE_S)  # the shell reads from now on
        writer.write(
            b"cat /sys/block/vd?/size /sys/block/vd?/serial; echo thin > /dev/vda; echo thick > /dev/vdb; sync; "
            b"echo written-$((40 + 2))\n"
        )
        await writer.drain()
        text = await said(log, "written-42", _ANSWER_DEADLINE_S)
        lines = text.splitlines()
        assert "20002001" in text  # the serials, without ends of lines
        for line in (str(48 * MIB // 512), str(16 * MIB // 512)):
            assert line in [seen.strip() for seen in lines], lines[-20:]
        assert (shared / "linux" / "linux-flat.vmdk").read_bytes()[:5] == b"thin\n"
        assert (shared / "linux" / "linux_1-flat.vmdk").read_bytes()[:6] == b"thick\n"
        assert (shared / "linux" / "linux-flat.vmdk").stat().st_blocks * 512 < 4 * MIB
        with pytest.raises((FileLocked, ResourceInUse)):
            await host.delete("[shared] linux/linux.vmdk")
        writer.close()
        reader.feed_eof()
        await host.call("PowerOffVm", vm.uuid)
        await host.call("DestroyVm", vm.uuid)
        assert not (shared / "linux").exists()
    finally:
        await host.end()
