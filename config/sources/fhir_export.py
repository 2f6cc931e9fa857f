"""Flatten a FHIR R4 bulk export (NDJSON files in a folder) into a CSV file that an agent can read.

    python fhir_export.py EXPORT_FOLDER records.csv

One row for each patient with a birth date and at least one systolic blood pressure: age, sex, the
mean systolic pressure, whether a myocardial infarction was ever diagnosed, and whether an active
consent permits research. An example to change, not a mapping for every hospital: codes, units and
the meaning of a consent differ. Run it where the records are; it needs only Python. The row of a
line that cannot be read is not guessed: the line is named and nothing is written.
"""

import csv
import json
import math
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

REFERENCE_YEAR = 2025
"""Ages are counted to this year, so that the same records give the same rows on any day."""

TODAY = datetime.now(UTC).date().isoformat()
"""Of consents that say until when they hold."""

LOINC, SNOMED, ICD_10 = (
    "http://loinc.org",
    "http://snomed.info/sct",
    "http://hl7.org/fhir/sid/icd-10",
)
SYSTOLIC = (LOINC, "8480-6")
INFARCTION = (SNOMED, "22298006")
FINAL = ("final", "amended", "corrected")
NOT_SO = ("refuted", "entered-in-error")
COLUMNS = ("patient_id", "age", "sex", "systolic", "infarction", "research_consent")


def resources(folder: Path, kind: str) -> Iterator[dict[str, Any]]:
    """Every resource of a kind, from `Kind.ndjson`, `Kind.000.ndjson` and the like."""
    for path in sorted(folder.glob(f"{kind}*.ndjson")):
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    found = json.loads(line) if line.strip() else {}
                except ValueError:
                    sys.exit(f"{path}, line {number} is not JSON")
                if not isinstance(found, dict):
                    sys.exit(f"{path}, line {number} is no resource")
                if found.get("resourceType") == kind:
                    yield found


def patient_of(resource: dict[str, Any], key: str = "subject") -> str:
    """The id of the patient that a resource is about, in whatever version; empty for none."""
    reference = str(resource.get(key, {}).get("reference", ""))
    return reference.rpartition("Patient/")[2].partition("/")[0] if "Patient/" in reference else ""


def codes(concept: dict[str, Any]) -> set[tuple[str, str]]:
    """(system, code) of a CodeableConcept."""
    return {(one.get("system", ""), one.get("code", "")) for one in concept.get("coding", [])}


def pressures(folder: Path) -> dict[str, list[float]]:
    """Systolic pressures in mmHg of each patient, alone or as a part of a whole blood pressure."""
    found: dict[str, list[float]] = defaultdict(list)
    for one in resources(folder, "Observation"):
        if one.get("status") not in FINAL:
            continue
        for part in (one, *one.get("component", [])):
            quantity = part.get("valueQuantity", {})
            right = SYSTOLIC in codes(part.get("code", {})) and quantity.get("code") == "mm[Hg]"
            if right and isinstance(quantity.get("value"), int | float):
                found[patient_of(one)].append(float(quantity["value"]))
    return found


def infarctions(folder: Path) -> set[str]:
    """Patients with a diagnosis that was not taken back."""
    found = set()
    for one in resources(folder, "Condition"):
        if {code for _, code in codes(one.get("verificationStatus", {}))} & set(NOT_SO):
            continue
        named = codes(one.get("code", {}))
        icd = any(s.startswith(ICD_10) and code.startswith(("I21", "I22")) for s, code in named)
        if icd or INFARCTION in named:
            found.add(patient_of(one))
    return found


def consents(folder: Path) -> set[str]:
    """Patients with a consent to research that is active now, and none that denies it."""
    permitted, denied = set(), set()
    for one in resources(folder, "Consent"):
        if "research" not in {code for _, code in codes(one.get("scope", {}))}:
            continue
        if one.get("status") in ("active", "rejected"):
            provision = one.get("provision", {})
            permits = one["status"] == "active" and permits_all(provision)
            patient = patient_of(one, "patient")
            if not patient and not permits:
                sys.exit("a Consent that permits no research names nobody by Patient/ID: mend it")
            if not permits:
                denied.add(patient)
            elif not has_ended(provision):
                permitted.add(patient)
    return permitted - denied


def permits_all(provision: dict[str, Any]) -> bool:
    """Whether neither it nor an exception within it denies anything."""
    return provision.get("type") == "permit" and all(
        permits_all(one) for one in provision.get("provision", [])
    )


def has_ended(provision: dict[str, Any]) -> bool:
    """Whether its time was over before today; it may say a year or a month alone."""
    end = str(provision.get("period", {}).get("end", ""))[:10]
    return end < TODAY[: len(end)]


def write(file: TextIO, folder: Path) -> int:
    """Write the header and a row for each patient; how many there are."""
    systolic, ill, agreed = pressures(folder), infarctions(folder), consents(folder)
    writer, rows = csv.writer(file), 0
    writer.writerow(COLUMNS)
    for one in resources(folder, "Patient"):
        patient, born = str(one.get("id", "")), str(one.get("birthDate", ""))[:4]
        if not patient or not born.isdigit() or not systolic.get(patient):
            continue
        mean = math.fsum(systolic[patient]) / len(systolic[patient])
        sex = one.get("gender") if one.get("gender") in ("female", "male") else ""
        consent = "yes" if patient in agreed else "no"
        age, label = REFERENCE_YEAR - int(born), int(patient in ill)
        writer.writerow([patient, age, sex, f"{mean:.1f}", label, consent])
        rows += 1
    return rows


def main() -> None:
    """Write the file whole or not at all, for its owner alone."""
    if len(sys.argv) != 3:
        sys.exit("usage: python fhir_export.py EXPORT_FOLDER records.csv")
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    beside = out.with_name(f".{out.name}.partial")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", newline="", encoding="utf-8") as file:
            rows = write(file, folder)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    beside.replace(out)
    sys.stdout.write(f"{rows} patients\n")


if __name__ == "__main__":
    main()
