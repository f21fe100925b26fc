"""Audit: all checks on one network, held against honest networks, and one report."""

from featvis.audit.audit import COUNT, STEPS, audit
from featvis.audit.calibration import Calibration
from featvis.audit.checks import CHECKS, SCORES, Check
from featvis.audit.result import Audit
from featvis.audit.study import Trials, trials

__all__ = ["CHECKS", "COUNT", "SCORES", "STEPS", "Audit", "Calibration", "Check", "Trials", "audit", "trials"]
