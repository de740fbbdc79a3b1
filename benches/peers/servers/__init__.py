"""The servers that are measured: a module each, which says what it needs, how it starts, and which settings it has."""

from . import mlserver, mosec, ray, triton, weir

ALL = {module.NAME: module for module in (weir, triton, mosec, mlserver, ray)}
