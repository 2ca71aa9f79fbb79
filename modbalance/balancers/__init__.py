"""The well-known balancers, each from its paper's formulas, all used in the same three lines."""

from modbalance.balancers.agm import AGM
from modbalance.balancers.cggm import CGGM
from modbalance.balancers.formulas import blend_weights
from modbalance.balancers.ogm import OGMGE
from modbalance.balancers.pareto import MMPareto
from modbalance.balancers.pmr import PMR
from modbalance.balancers.umt import UMT
from modbalance.balancers.unimodal import DetachedFusion, GradientBlending, UnimodalLosses
from modbalance.dropout import ModalityDropout
from modbalance.protocol import Balancer, BalancerOutput

__all__ = [
    "AGM",
    "CGGM",
    "OGMGE",
    "PMR",
    "UMT",
    "Balancer",
    "BalancerOutput",
    "DetachedFusion",
    "GradientBlending",
    "MMPareto",
    "ModalityDropout",
    "UnimodalLosses",
    "blend_weights",
]
