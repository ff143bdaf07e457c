"""Diagnosis: inspection of what is on disk, and the doctor of train/deploy parity."""

from torchrl_vla.diagnosis.doctor import Diagnosis, diagnose
from torchrl_vla.diagnosis.finding import STAGES, Finding
from torchrl_vla.diagnosis.inspect_path import inspect_path
from torchrl_vla.diagnosis.inspection import Inspection, Problem
from torchrl_vla.diagnosis.inspection_page import write_inspection

__all__ = [
    "STAGES",
    "Diagnosis",
    "Finding",
    "Inspection",
    "Problem",
    "diagnose",
    "inspect_path",
    "write_inspection",
]
