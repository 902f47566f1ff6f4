"""Griffe extension: what of `lrk` a reader of its files alone would not find."""

import re
from collections.abc import Iterator
from pathlib import Path

import griffe


class LrkPackage(griffe.Extension):
    """Gives the package what Python gives it, by rules that griffe has not."""

    def on_module_instance(self, *, mod: griffe.Module, **_: object) -> None:
        """`lrk.kernels`, a folder without `__init__.py` (docs/architecture.md)."""
        if mod.path == "lrk" and isinstance(mod.filepath, Path):
            kernels = griffe.Module("kernels", filepath=[mod.filepath.parent / "kernels"])
            mod.set_member("kernels", kernels)

    def on_function(self, *, func: griffe.Function, **_: object) -> None:
        """What `functools.wraps` gives a function, as the Triton forms of the loss."""
        for decorator in func.decorators:
            if wraps := re.fullmatch(r"functools\.wraps\((\w+)\)", str(decorator.value)):
                wrapped = func.parent[wraps[1]]
                func.docstring, func.parameters = wrapped.docstring, wrapped.parameters

    def on_package(self, *, pkg: griffe.Module, **_: object) -> None:
        """Functions that bear the name of their module, as `lrk.patch`: griffe finds the module."""
        modules = list(_modules(pkg))
        hidden = {
            f"{module.path}.{name}": pkg[path.removeprefix(f"{pkg.path}.")]
            for module in modules
            for name, path in module.imports.items()
            if path == f"{module.path}.{name}.{name}"
        }
        # What is imported from such modules is found by its path, which leads elsewhere afterwards.
        for member in (member for module in modules for member in module.members.values()):
            if member.is_alias and member.target_path.rpartition(".")[0] in hidden:
                member.resolve_target()
        for module in modules:
            for name in module.exports or ():
                path = module.imports.get(name, "")
                function = hidden.get(path) or hidden.get(path.removesuffix(f".{name}"))
                if function is not None:
                    module.set_member(name, griffe.Alias(name, function, parent=module))


def _modules(package: griffe.Module) -> Iterator[griffe.Module]:
    yield package
    for module in package.modules.values():
        if not module.is_alias:
            yield from _modules(module)
