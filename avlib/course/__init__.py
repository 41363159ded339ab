"""The course: exercise checks, one module a notebook, and `python -m avlib.course`."""
