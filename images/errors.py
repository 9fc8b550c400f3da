"""Pure: no I/O, no clock, no logging.

What can go wrong while the guest's image is built. All are for the person at the terminal: each message says what
to do.

ImageError
├── ToolMissing      a program of the build machine is not installed
├── PackageError     a Debian package can't be found, fetched or read
├── CompileError     the C compiler refused the guest's program
├── ModuleError      a kernel module is not in the kernel package, or is none
├── CpioError        an entry that the archive's format can't hold, or an archive that is none
└── DiskBuildError   a tool that writes a part of the root disk failed
"""


class ImageError(Exception):
    """The image was not built; what was there before is untouched."""


class ToolMissing(ImageError):
    """A program is not installed here.

    :ivar tool: the program
    :ivar package: the Debian package that has it
    """

    def __init__(self, tool: str, package: str) -> None:
        super().__init__(f"{tool} is not installed here: apt-get install {package}")
        self.tool = tool
        self.package = package


class PackageError(ImageError):
    """A Debian package can't be had.

    :ivar package: its name
    :ivar reason: what apt or dpkg said
    """

    def __init__(self, package: str, reason: str) -> None:
        super().__init__(f"package {package}: {reason}")
        self.package = package
        self.reason = reason


class CompileError(ImageError):
    """The C compiler failed.

    :ivar output: what it said
    """

    def __init__(self, output: str) -> None:
        super().__init__(f"the guest's program does not compile (gcc and libc6-dev are needed):\n{output}")
        self.output = output


class ModuleError(ImageError):
    """A kernel module can't be used.

    :ivar module: its name
    """

    def __init__(self, module: str, reason: str) -> None:
        super().__init__(f"kernel module {module}: {reason}")
        self.module = module


class CpioError(ImageError):
    """An archive entry can't be written.

    :ivar path: the entry's path in the archive
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"cpio entry {path!r}: {reason}")
        self.path = path


class DiskBuildError(ImageError):
    """A tool could not write its part of the disk.

    :ivar tool: which one
    :ivar reason: what it said
    """

    def __init__(self, tool: str, reason: str) -> None:
        super().__init__(f"{tool} failed: {reason}")
        self.tool = tool
        self.reason = reason
