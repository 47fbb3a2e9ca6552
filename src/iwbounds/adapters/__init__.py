"""Models, draws and densities of other libraries, as iwbounds takes them. Each needs the library it is named after.

* :mod:`iwbounds.adapters.pyro`: a Pyro model and guide as a log-joint and a proposal;
* :mod:`iwbounds.adapters.arviz`: posterior draws by chain and draw as :func:`iwbounds.sandwich` takes them;
* :mod:`iwbounds.adapters.jax`: a JAX log-density as a torch callable with its gradient;
* :mod:`iwbounds.adapters.zuko`: a flow whose density is cheap only while it draws, as a proposal.
"""
