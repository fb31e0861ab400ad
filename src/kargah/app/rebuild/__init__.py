"""The database made again from the files: run directories, the asset store and the records beside both.

Accounts alone are nowhere but in the database. What could not be read is told and left where it is.
"""
