"""Data sets as the data steward declares them in `datasets.yaml`; nothing here opens the data."""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StrictStr,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from node_agent.folder.config import read_yaml
from node_agent.sources.database import Database
from node_agent.yaml_files.faults import counted, place_of, sentence, to_tell
from node_agent.yaml_files.shapes import name_like
from protos.errors import Malformed

FILE_NAME: Final = "datasets.yaml"
WRONG_TOLD_MAX: Final = 20
NAME_CHARS_SHOWN_MAX: Final = 64
CATEGORIES_MAX: Final = 1000
COLUMNS_MAX: Final = 10_000
DECLARED_N_MAX: Final = 2**53
ROWS_PER_PATIENT_MAX: Final = 1_000_000

Name = Annotated[str, name_like("heart")]
ColumnName = Annotated[StrictStr, Field(min_length=1, max_length=256)]


class CategoryColumn(BaseModel):
    """A column of text that holds one of the listed values."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    category: list[ColumnName] = Field(
        min_length=1, max_length=CATEGORIES_MAX, examples=[["female", "male"]]
    )

    @model_validator(mode="after")
    def _distinct(self) -> "CategoryColumn":
        if len(set(self.category)) != len(self.category):
            raise ValueError("a category is listed twice")
        return self


def _form(value: object) -> str:
    return "<number>" if isinstance(value, str) else "<category>"


ColumnType = Annotated[
    Annotated[Literal["number"], Tag("<number>")] | Annotated[CategoryColumn, Tag("<category>")],
    # Which of the two forms was meant, so that a fault is reported in that one.
    Discriminator(_form),
]


class Consent(BaseModel):
    """Which patients agreed: those whose every row holds one of the values in a column."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    column: ColumnName = Field(examples=["research_consent"])
    values: list[ColumnName] = Field(min_length=1, max_length=CATEGORIES_MAX, examples=[["yes"]])


class DataSetSpec(BaseModel):
    """One data set: where its records are, how they read, and what the steward says of its size.

    Attributes:
        source: absolute path of a .csv, .parquet or .sql file, once loaded.
        database: where the query of a .sql file is asked.
        consent: patients who did not agree are left out.
        opt_out: absolute path of a file of patients who are left out, an id a line.
        patient: the column that says whose record a row is: the unit that is protected.
        label: the column that holds 0 or 1.
        declared_n: number of patients, typed by the steward and public; never counted.
        version: opaque counter that the steward raises when the records change.
        account: the privacy account that pays.
        rows_per_patient_max: complete rows of one patient that are used; further ones are left
            out, in an order of no meaning that follows from these rows alone. Bounds the time and
            memory that one patient takes.
        columns: the columns that a task may use, and their types.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    source: Path = Field(examples=["records.csv"])
    patient: ColumnName = Field(examples=["patient_id"])
    label: ColumnName = Field(examples=["disease"])
    declared_n: int = Field(ge=1, le=DECLARED_N_MAX, strict=True, examples=[200])
    version: int = Field(ge=1, lt=2**63, strict=True)
    account: Name = "patients"
    rows_per_patient_max: int = Field(default=1000, ge=1, le=ROWS_PER_PATIENT_MAX, strict=True)
    columns: dict[ColumnName, ColumnType] = Field(
        min_length=1,
        max_length=COLUMNS_MAX,
        examples=[{"age": "number", "sex": {"category": ["female", "male"]}}],
    )
    database: Database | None = None
    consent: Consent | None = None
    opt_out: Path | None = Field(default=None, examples=["opt-out.txt"])

    @property
    def declared_columns(self) -> frozenset[str]:
        """Every column that the source must have."""
        consent = {self.consent.column} if self.consent is not None else set()
        return frozenset({self.patient, self.label, *self.columns} | consent)

    @model_validator(mode="before")
    @classmethod
    def _patient_is_no_feature(cls, value: Any) -> Any:
        """Said before its type is looked at: no type is right for it."""
        if not isinstance(value, dict) or not isinstance(value.get("columns"), dict):
            return value
        patient, columns = value.get("patient"), value["columns"]
        if isinstance(patient, str) and patient in columns:
            raise ValueError(
                f"columns: {patient!r} is the patient column, which says whose record a row is. It "
                "is read as text, is no feature of any task, and needs no type: take it out of "
                "columns; `patient` alone declares it"
            )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "DataSetSpec":
        if self.source.suffix not in (".csv", ".parquet", ".sql"):
            raise ValueError("source must end in .csv, .parquet or .sql")
        if (self.source.suffix == ".sql") != (self.database is not None):
            raise ValueError("a source in .sql needs a database, and no other source takes one")
        if self.consent is not None and self.consent.column in (self.patient, self.label):
            raise ValueError("the consent column must be neither patient nor label")
        if self.patient == self.label:
            raise ValueError("patient and label must be two columns")
        if self.columns.get(self.label, "number") != "number":
            raise ValueError("the label column holds 0 or 1; declare it as number or not at all")
        return self


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    data_sets: list[dict[str, Any]] = Field(
        examples=[[{"name": "heart", "source": "records.csv", "patient": "patient_id"}]]
    )


def load_data_sets(folder: Path) -> list[DataSetSpec]:
    """The data sets that `folder`/datasets.yaml declares, sources made absolute.

    Raises:
        Malformed: DATASETS_INVALID; the message names the file, the data set and the key.
    """
    path = folder / FILE_NAME
    content = read_yaml(path, "DATASETS_INVALID")
    try:
        entries = _File.model_validate(content).data_sets
    except ValidationError as error:
        raise _invalid(path, f"has a wrong shape: {_faults(_File, error)}") from None
    specs: list[DataSetSpec] = []
    wrong: list[str] = []
    for number, entry in enumerate(entries, start=1):
        try:
            specs.append(_spec(path.parent, entry))
        except ValidationError as error:
            wrong.append(f"{_title(number, entry)}: {_faults(DataSetSpec, error)}")
    if wrong:
        told = "; and ".join(wrong[:WRONG_TOLD_MAX])
        many = "a wrong data set" if len(wrong) == 1 else f"{len(wrong)} wrong data sets:"
        raise _invalid(path, f"has {many} {told}")
    for name, times in Counter(spec.name for spec in specs).items():
        if times > 1:
            raise _invalid(path, f"declares data set {name!r} {times} times; names must differ")
    return specs


def published(name: str, schema: str) -> DataSetSpec:
    """A data set as far as its node publishes it: columns and types; enough to check a task_config.

    Raises:
        ValueError: `schema` is not what `schema_json` gives.
    """
    columns = json.loads(schema).get("columns", {})
    return DataSetSpec.model_validate(
        {
            "name": name,
            "source": "published.csv",
            "patient": " patient",
            "label": " label",
            "declared_n": 1,
            "version": 1,
            "columns": columns,
        }
    )


def schema_json(spec: DataSetSpec) -> str:
    """Declared columns and their types as JSON, for engineers; no path, patient, label or consent
    column."""
    columns = spec.model_dump(mode="json", include={"columns"})["columns"]
    consent = [spec.consent.column] if spec.consent is not None else []
    for hidden in (spec.patient, spec.label, *consent):
        columns.pop(hidden, None)
    return json.dumps({"columns": columns}, sort_keys=True)


def _spec(folder: Path, entry: dict[str, Any]) -> DataSetSpec:
    return _in_folder(DataSetSpec.model_validate(entry), folder)


def _title(number: int, entry: dict[str, Any]) -> str:
    name = entry.get("name")
    if isinstance(name, str) and len(name) <= NAME_CHARS_SHOWN_MAX:
        return repr(name)
    return f"number {number}"


def _in_folder(spec: DataSetSpec, folder: Path) -> DataSetSpec:
    """The same, its files' paths absolute."""
    changed: dict[str, Any] = {"source": (folder / spec.source).absolute()}
    if spec.opt_out is not None:
        changed["opt_out"] = (folder / spec.opt_out).absolute()
    if spec.database is not None and spec.database.password_file is not None:
        password_file = (folder / spec.database.password_file).absolute()
        changed["database"] = spec.database.model_copy(update={"password_file": password_file})
    return spec.model_copy(update=changed)


def _faults(model: type[BaseModel], error: ValidationError) -> str:
    """What is wrong with each key."""
    faults = to_tell(model, error.errors(include_url=False))
    return counted([_told(model, one) for one in faults])


def _told(model: type[BaseModel], fault: ErrorDetails) -> str:
    key, text = place_of(model, fault["loc"]).key, sentence(model, fault)
    if fault["loc"] == ("patient",) and fault["type"] == "string_type":
        text = (
            "exactly one column names the patient: write its name, as text, for instance `patient: "
            "patient_id`; where several make the id, join them into one column of the file"
        )
    if "category" in fault["loc"] and fault["type"] == "string_type":
        text += " (YAML reads TRUE, No and 1 as other than text: quote them)"
    return f"key {key}: {text}" if key else text


def _invalid(path: Path, what: str) -> Malformed:
    return Malformed("DATASETS_INVALID", f"{path} {what}")
