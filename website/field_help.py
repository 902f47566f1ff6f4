"""Griffe extension: what `--help` says of an argument stands in the API reference too.

The arguments of the commands are fields of dataclasses, whose text is the `help` of their metadata.
"""

import dataclasses
import importlib
import logging
import warnings

import griffe


class FieldHelp(griffe.Extension):
    """Gives fields of dataclasses their help as docstring, and their default as value."""

    def on_class(self, *, cls: griffe.Class, **_: object) -> None:
        """Read the help of a class's fields from the class itself, since some of it is computed."""
        members = [member for member in cls.attributes.values() if "metadata=" in str(member.value)]
        if not members:
            return
        fields = {field.name: field for field in dataclasses.fields(_imported(cls))}
        for member in members:
            field = fields[member.name]
            if "help" in field.metadata:
                member.docstring = griffe.Docstring(field.metadata["help"], parent=member)
            if field.default is not dataclasses.MISSING:
                member.value = repr(field.default)
            elif field.default_factory is not dataclasses.MISSING:
                member.value = f"{field.default_factory.__name__}()"


def _imported(cls: griffe.Class) -> type:
    """The class itself; what other packages say while they are imported is not the site's."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            return getattr(importlib.import_module(cls.module.path), cls.name)
    finally:
        logging.disable(logging.NOTSET)
