"""A warm interpreter, as sandboxes for agents keep them: libraries and data are there, and it
waits for a request. It speaks as the workload does: at SIGUSR1 it reads the file `request`, and
answers in the file that its argument names. It holds no pipe, no socket and no open file."""

import collections
import csv
import datetime
import decimal
import hashlib
import json
import os
import random
import re
import signal
import statistics
import sys

import numpy

ANSWER = sys.argv[1]
REQUEST = os.path.join(os.path.dirname(ANSWER), "request")
# Every number from 0 on once: what `sandbox.rs` expects.
data = numpy.arange(1 << 21, dtype=numpy.int64)


def answer(number):
    """Writes an answer that a reader sees whole or not at all."""
    with open(ANSWER + ".tmp", "w") as file:
        file.write(str(number))
    os.rename(ANSWER + ".tmp", ANSWER)


signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
# Children that end leave no zombies.
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
answer(0)
while signal.sigwait({signal.SIGUSR1}):
    with open(REQUEST) as file:
        request = json.load(file)
    if request == "Fork":
        child = os.fork()
        if child:
            answer(child)
    else:
        answer(eval(request["Evaluate"]))
