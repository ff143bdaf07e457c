"""Diagnosis: inspection of what is on disk, and the doctor of train/deploy parity."""

from torchrl_vla.diagnosis.doctor import Diagnosis, diagnose
from torchrl_vla.diagnosis.finding import STAGES, Finding

__all__ = ["STAGES", "Diagnosis", "Finding", "diagnose"]
