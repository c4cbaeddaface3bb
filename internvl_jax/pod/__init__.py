"""The processes of a pod: how they find each other, agree, stop together, and end when one of them does."""

from internvl_jax.pod import place
from internvl_jax.pod.agreement import agree, lead, versions
from internvl_jax.pod.channel import Channel
from internvl_jax.pod.gauges import Gauges
from internvl_jax.pod.place import Place
from internvl_jax.pod.pod import Pod

__all__ = ["Channel", "Gauges", "Place", "Pod", "agree", "lead", "place", "versions"]
