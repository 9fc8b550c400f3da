"""Generates the Python stubs beside the .proto files (`make proto`).

The stubs aren't kept in git. Sources are compiled with the project's root as include path, so that packages are
`proto.<area>.v1` and never clash with a daemon's own package.
"""

import sys
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Compile every .proto file under `proto/`; returns protoc's exit status."""
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "proto").rglob("*.proto"))
    newest = max((ROOT / source).stat().st_mtime for source in [*sources, "proto/generate.py"])
    stubs = [ROOT / source.replace(".proto", "_pb2.py") for source in sources]
    if all(stub.exists() and stub.stat().st_mtime >= newest for stub in stubs):
        return 0
    include = Path(grpc_tools.__file__).parent / "_proto"
    bin_directory = Path(sys.executable).parent
    return int(
        protoc.main(
            [
                "protoc",
                f"-I{ROOT}",
                f"-I{include}",
                f"--plugin=protoc-gen-mypy={bin_directory / 'protoc-gen-mypy'}",
                f"--plugin=protoc-gen-mypy_grpc={bin_directory / 'protoc-gen-mypy_grpc'}",
                f"--python_out={ROOT}",
                f"--grpc_python_out={ROOT}",
                f"--mypy_out={ROOT}",
                f"--mypy_grpc_out={ROOT}",
                *sources,
            ]
        )
    )


if __name__ == "__main__":
    sys.exit(main())
