"""The source that runs inside the sandbox.

May import the standard library only. Never holds an expected value and a solution in one process. The verifier sends
the text of these files: `forms`, `loading` and `calling` to the process of the solution, `forms` and `grading` to the
grader, `loading` alone to a program with stdin and stdout.
"""
