from judged import judge, no_network, only_that_judge, write_folder  # noqa: F401 (fixtures)
