"""The evaluation suite, installed and imported as `patchssl.evaluate`."""

# The folder stands at the top of the repository, where `import evaluate` finds it: another distribution owns that name.
if __name__ != "patchssl.evaluate":
    raise ImportError(
        f"the folder {__file__!r} was imported as {__name__!r}; its import name is patchssl.evaluate: write "
        "`import patchssl.evaluate`. If you meant another package called evaluate, run Python from another folder."
    )
