"""What pyproject.toml cannot say: the wheel has kernels.so where a compiler can be had, and its tags follow from that.

The wheel also has the project's code, as files in pruneonce/shipped: a project of `pruneonce init` runs it.
"""

import platform
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent))  # a build has the project's folder not on its path

from kernels import build
from pruneonce.errors import KernelsError
from pruneonce.projects import SHIPPED

MACHINE = platform.machine()
try:
    COMPILER = build.find_compiler(MACHINE)
except KernelsError:
    COMPILER = []
LIBRARY = ".".join(build.LIBRARY.relative_to(build.ROOT).with_suffix("").parts)


SHIP = ("stages", "pipeline", "flows", "profiles", "dvc.yaml", "params.yaml", ".gitignore")


class BuildPackage(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:  # it finds the code in the clone
            return
        shipped = Path(self.build_lib, "pruneonce", SHIPPED.name)
        shutil.rmtree(shipped, ignore_errors=True)  # of an earlier build
        shipped.mkdir(parents=True)
        for name in SHIP:
            source = Path(name)
            if source.is_dir():
                shutil.copytree(source, shipped / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
            else:
                shutil.copyfile(source, shipped / name)


class BuildKernels(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        return f"{fullname.replace('.', '/')}.so"  # without a tag of Python: the library does not use it

    def build_extension(self, ext: Extension) -> None:
        build.build(Path(self.get_ext_fullpath(ext.name)), compiler=build.find_compiler(MACHINE), target=MACHINE)

    def run(self) -> None:
        try:
            super().run()
        except KernelsError as error:
            self.warn(f"{type(error).__name__}: {error}")
            Path(self.get_ext_fullpath(LIBRARY)).unlink(missing_ok=True)  # of an earlier build
            self.extensions = self.distribution.ext_modules = []


class KernelsWheel(bdist_wheel):
    def run(self) -> None:
        self.run_command("build")
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        platform_tag = super().get_tag()[2]
        if not self.root_is_pure and build.is_zig(COMPILER):
            platform_tag = platform_tag.replace("linux", f"manylinux_{build.GLIBC.replace('.', '_')}", 1)
        return "py3", "none", platform_tag


setup(
    ext_modules=[Extension(LIBRARY, sorted(map(str, Path("kernels").glob("*.c"))))],
    cmdclass={"build_py": BuildPackage, "build_ext": BuildKernels, "bdist_wheel": KernelsWheel},
    # setuptools hands it to pip, which installs it for the time of the build.
    setup_requires=[build.ZIGLANG] if sys.platform == "linux" and not COMPILER else [],
)
