"""Sound tests for models, proposals, bounds and gradients of your own: coupled, exact, or sequential; never flaky.

:mod:`iwbounds.testing.strategies` needs hypothesis, and is imported when it is asked for. Without hypothesis it is
no part of ``from iwbounds.testing import *``, and asking for it says what to install.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

from iwbounds.testing.budget import ErrorBudget
from iwbounds.testing.contracts import ContractError, UncheckedWarning, check_contract
from iwbounds.testing.evidence import assert_not_above, assert_upper_bound
from iwbounds.testing.models import FiniteModel, GaussianModel, GradientProblem
from iwbounds.testing.orderings import assert_coupled_order, assert_monotone_in_k, assert_same_value, default_chains
from iwbounds.testing.sandwich import assert_sandwich
from iwbounds.testing.unbiasedness import assert_grad_unbiased

__all__ = [
    "ContractError",
    "ErrorBudget",
    "FiniteModel",
    "GaussianModel",
    "GradientProblem",
    "UncheckedWarning",
    "assert_coupled_order",
    "assert_grad_unbiased",
    "assert_monotone_in_k",
    "assert_not_above",
    "assert_same_value",
    "assert_sandwich",
    "assert_upper_bound",
    "check_contract",
    "default_chains",
]
# sys.modules holds None for a module that is blocked, and find_spec raises ValueError on it.
if sys.modules.get("hypothesis", ...) is not None and importlib.util.find_spec("hypothesis") is not None:
    __all__ += ["strategies"]


def __getattr__(name: str) -> ModuleType:
    if name == "strategies":
        return importlib.import_module("iwbounds.testing.strategies")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
