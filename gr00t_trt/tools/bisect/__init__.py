"""Where a compiled or cast submodule first leaves eager fp32: the layer, or the operator of the compiled graph."""
