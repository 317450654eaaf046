"""The base of every section of params.yaml, and the types that sections share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Ratio = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Steps = Annotated[int, Field(ge=0)]  # optimizer steps
Rows = Annotated[int, Field(ge=0)]
Runs = Annotated[int, Field(ge=0)]
Threads = Annotated[int, Field(ge=0)]  # 0: as many as the processor has cores
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=100)]  # stands in file names
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Section(BaseModel):
    """Base of every section: frozen, strict, no unknown keys, no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
