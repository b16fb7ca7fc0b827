"""The type of every tensor of a pair: the chosen mixtures, and what the user overrides in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pyvllama.conversion.policy import (
    MMPROJ_TYPES,
    TEXT_TYPES,
    FileType,
    Layer,
    Role,
    fit_type,
    matrix_type,
    needs_importance,
)
from pyvllama.conversion.policy import file_type as find_type
from pyvllama.errors import ConfigError
from pyvllama.gguf_file import GGML_TYPES

__all__ = ["Override", "TypeRules", "parse_overrides"]

_OVERRIDE_TYPES = {
    name.lower(): name
    for name in (
        *("f32", "f16", "bf16", "q8_0", "q6_K", "q5_K", "q5_1", "q5_0", "q4_K", "q4_1", "q4_0", "q3_K", "q2_K"),
        *("iq4_nl", "iq4_xs", "iq3_s", "iq3_xxs", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s"),
    )
}


@dataclass(frozen=True)
class Override:
    """A user's 'REGEX=TYPE'."""

    pattern: re.Pattern[str]
    type: str


@dataclass(frozen=True)
class TypeRules:
    """Which type each tensor gets."""

    text: FileType
    cross: FileType
    mmproj: FileType
    overrides: tuple[Override, ...] = ()
    has_importance: bool = False

    @classmethod
    def from_options(
        cls,
        text_type: str,
        mmproj_type: str,
        cross_type: str | None,
        tensor_types: Sequence[str] = (),
        *,
        has_importance: bool = False,
    ) -> TypeRules:
        """From what users write.

        Raises:
            ConfigError: names the option that has an unknown type or a wrong pattern.
        """
        text = find_type(text_type, TEXT_TYPES, "text_type")
        cross = text if cross_type is None else find_type(cross_type, TEXT_TYPES, "cross_type")
        mmproj = find_type(mmproj_type, MMPROJ_TYPES, "mmproj_type")
        return cls(text, cross, mmproj, parse_overrides(tensor_types), has_importance)

    def file_type_of(self, name: str, role: Role) -> FileType:
        """The mixture that a tensor of that GGUF name belongs to."""
        if role is Role.TOWER:
            return self.mmproj
        return self.cross if name.startswith("xattn.") else self.text

    def type_of(self, name: str, role: Role, layer: Layer, n_per_row: int, source_type: str) -> str:
        """The ggml type of a tensor in the file.

        Args:
            name: in GGUF.
            role: what it is.
            layer: where it stands.
            n_per_row: its row length in elements.
            source_type: what the source holds; tables keep it.
        """
        if role is Role.EXACT:
            return "f32"
        if role is Role.TABLE:
            return "f32" if self.mmproj.base == "f32" else source_type
        for override in self.overrides:
            if override.pattern.search(name):
                return fit_type(override.type, n_per_row)
        layer = replace(layer, has_importance=self.has_importance)
        return matrix_type(self.file_type_of(name, role), role, layer, n_per_row)

    def check_importance(self, name: str, role: Role, ggml_type: str) -> None:
        """See that a tensor without an importance matrix may have that type.

        Raises:
            ConfigError: it would be garbage.
        """
        if needs_importance(self.file_type_of(name, role), role, ggml_type):
            advice = "make one with `pyvllama imatrix` and give it with --imatrix"
            if self.has_importance and name.startswith("xattn."):
                advice = (
                    "the one that was given knows nothing of the mmproj. `pyvllama imatrix` writes another for it, "
                    "imatrix-mmproj-NAME.gguf: give both with --imatrix, or choose a --cross-type"
                )
            elif self.has_importance:
                advice = "the one that was given does not have it"
            raise ConfigError(
                f"{name} in {ggml_type} needs an importance matrix: {advice}, or choose a larger type (Q2_K, Q3_K_S, "
                "IQ4_XS and others need none)"
            )

    def check_overrides(self, matrices: Iterable[str]) -> None:
        """See that each override means something.

        Args:
            matrices: GGUF names of all tensors that have a type to choose.

        Raises:
            ConfigError: names a pattern that matches none of them.
        """
        names = list(matrices)
        for override in self.overrides:
            if not any(override.pattern.search(name) for name in names):
                raise ConfigError(
                    f"tensor_type '{override.pattern.pattern}={override.type}' matches no matrix; they are called "
                    f"like {', '.join(dict.fromkeys(re.sub(r'[0-9]+', 'N', name, count=1) for name in names[:12]))} "
                    "(vectors and tables have no choice of type; --dry-run lists all names)"
                )


def parse_overrides(tensor_types: Sequence[str]) -> tuple[Override, ...]:
    """'REGEX=TYPE' each; the first that matches a tensor's GGUF name anywhere decides, as with llama-quantize.

    Raises:
        ConfigError: a pattern or type is wrong.
    """
    overrides = []
    for given in tensor_types:
        pattern, found, name = given.rpartition("=")
        if not found or not pattern:
            raise ConfigError(f"tensor_type = {given!r}: expected REGEX=TYPE, such as 'xattn.*=q8_0'")
        if (ggml_type := _OVERRIDE_TYPES.get(name.strip().lower())) is None or ggml_type not in GGML_TYPES:
            raise ConfigError(f"tensor_type = {given!r}: {name!r} is no type; there are {', '.join(_OVERRIDE_TYPES)}")
        try:
            overrides.append(Override(re.compile(pattern), ggml_type))
        except re.error as e:
            raise ConfigError(f"tensor_type = {given!r}: {pattern!r} is no regular expression: {e}") from e
    return tuple(overrides)
