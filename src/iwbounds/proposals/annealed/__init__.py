"""Chains as proposals over their whole path: ULA, MCD, CMCD, DAIS, and AIS with HMC.

One story per file: the public proposal (proposal), what a transition is (transition), the densities at its states and
the two kinds of gradient (bridge), β and step sizes (schedule), what Langevin chains share (langevin), and one file for
each transition. AIS besides: its recursion (annealing), and the pilot run that sets its steps (adaptation).
"""

from iwbounds.proposals.annealed.adaptation import AnnealingReport
from iwbounds.proposals.annealed.cmcd import CMCD
from iwbounds.proposals.annealed.dais import DAIS
from iwbounds.proposals.annealed.hmc import HMC
from iwbounds.proposals.annealed.mcd import MCD
from iwbounds.proposals.annealed.proposal import AnnealedProposal
from iwbounds.proposals.annealed.schedule import LearnedSchedule, LearnedStepSize
from iwbounds.proposals.annealed.transition import Transition
from iwbounds.proposals.annealed.ula import ULA

__all__ = [
    "CMCD",
    "DAIS",
    "HMC",
    "MCD",
    "ULA",
    "AnnealedProposal",
    "AnnealingReport",
    "LearnedSchedule",
    "LearnedStepSize",
    "Transition",
]
