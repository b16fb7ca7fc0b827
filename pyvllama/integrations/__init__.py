"""pyvllama inside other people's programs: each module needs the package that it is for, and is loaded only with it."""
