"""Exact models: expectations by quadrature or enumeration, evidence in closed form."""
