"""What LARS does to each layer, recorded, summed up and drawn."""

from gradient_lars.monitor._csv import read
from gradient_lars.monitor._findings import Finding
from gradient_lars.monitor._monitor import Monitor
from gradient_lars.monitor._plot import plot_rates
from gradient_lars.monitor._records import Record, Records
from gradient_lars.monitor._summary import LayerSummary, Summary

__all__ = ["Finding", "LayerSummary", "Monitor", "Record", "Records", "Summary", "plot_rates", "read"]
