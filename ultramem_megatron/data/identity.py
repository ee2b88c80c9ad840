"""What a run trains on, in hashes: kept in each checkpoint, and compared at a resume."""

import hashlib

from pydantic import BaseModel, ConfigDict


class SourceIdentity(BaseModel):
    """The training files of one source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    binary: str
    """sha256 of ``train.bin``."""
    index: str
    """sha256 of ``train.idx``."""
    share: float
    """Of the samples; all shares add up to 1."""


class DataIdentity(BaseModel):
    """Contents, and the order in which they are read. Without a tokenizer: generated tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokenizer: str = ""
    """sha256 of ``tokenizer.json``."""
    sources: dict[str, SourceIdentity] = {}
    seed: int
    seq_length: int

    @property
    def fingerprint(self) -> str:
        """One hash of all."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def content_differences(self, before: "DataIdentity") -> list[str]:
        """What this holds and ``before`` held otherwise, for people: tokenizer, then sources by name."""
        if not self.tokenizer or not before.tokenizer:
            kinds = [one.tokenizer == "" for one in (before, self)]
            return [f"{_kind(kinds[0])} there and {_kind(kinds[1])} here"] if kinds[0] != kinds[1] else []
        found = _hashes("tokenizer.json", before.tokenizer, self.tokenizer)
        for name in sorted({*before.sources, *self.sources}):
            there, here = before.sources.get(name), self.sources.get(name)
            if there is None or here is None:
                found.append(f"the source {name} is only {'here' if there is None else 'there'}")
                continue
            found += _hashes(f"{name}/train.bin", there.binary, here.binary)
            found += _hashes(f"{name}/train.idx", there.index, here.index)
        return found

    def order_differences(self, before: "DataIdentity") -> list[str]:
        """As ``content_differences``, of the order alone."""
        found = []
        for name, there, here in (
            ("training.seed", before.seed, self.seed),
            ("model.seq_length", before.seq_length, self.seq_length),
        ):
            if there != here:
                found.append(f"{name} = {there} there and {here} here")
        for name in sorted({*before.sources} & {*self.sources}):
            there_share, here_share = before.sources[name].share, self.sources[name].share
            if there_share != here_share:
                found.append(f"the share of {name} is {there_share:.6g} there and {here_share:.6g} here")
        return found


def _kind(generated: bool) -> str:
    return "generated tokens" if generated else "a data folder"


def _hashes(name: str, there: str, here: str) -> list[str]:
    return [] if there == here else [f"{name} has sha256 {there} there and {here} here"]
