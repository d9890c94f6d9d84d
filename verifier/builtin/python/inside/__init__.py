"""The source that runs inside the sandbox.

May import the standard library only. Never holds an expected value beside a solution. The verifier sends the text of these files and never calls their functions itself: `forms`, then `loading` and `calling`
to the process of the solution, `grading` to that of the grader. A program with stdin and stdout gets `loading` alone.
"""
