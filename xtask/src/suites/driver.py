"""Runs one file of CPython's tests and writes what became of each case: module, pattern, results.

A line a case, `outcome TAB name TAB first words of the reason`, written when the case ends; a line `start TAB name` when it
begins, so that a case in which everything hangs is known by name. The pattern leaves out what it does not match.
"""
import faulthandler
import os
import re
import sys
import tempfile
import unittest

from test import support

OUT = os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
OWNER = os.getpid()


def say(*fields):
    # A child that a case forked and forgot must not speak for it.
    if os.getpid() == OWNER:
        line = "\t".join(" ".join(str(field).split()) for field in fields)
        os.write(OUT, (line + "\n").encode(errors="replace"))


def name(case):
    return case.id().removeprefix("test.")


class Result(unittest.TextTestResult):
    def startTest(self, test):
        super().startTest(test)
        self.bad = None
        say("start", name(test))

    def stopTest(self, test):
        super().stopTest(test)
        if self.bad:
            say(*self.bad)
        elif self.bad is None:
            say("pass", name(test))

    def last_words(self, err):
        return f"{err[0].__name__}: {err[1]}"[:200]

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.bad = ("fail", name(test), self.last_words(err))

    def addError(self, test, err):
        super().addError(test, err)
        self.bad = ("fail", name(test), self.last_words(err))
        # What fails before a case begins: a class or a module that cannot be set up.
        if isinstance(test, unittest.suite._ErrorHolder):
            say(*self.bad)

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err:
            self.bad = ("fail", name(test), self.last_words(err))

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        if isinstance(test, unittest.suite._ErrorHolder):
            say("skip", name(test), reason)
        else:
            self.bad = ("skip", name(test), reason)

    def addUnexpectedSuccess(self, test):
        super().addUnexpectedSuccess(test)
        self.bad = ("fail", name(test), "unexpected success")


def keep(suite, pattern):
    kept = unittest.TestSuite()
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            kept.addTest(keep(test, pattern))
        elif pattern.search(name(test)):
            kept.addTest(test)
    return kept


def main():
    faulthandler.enable()
    # "network" is what sockets to this machine itself ask for; nothing beyond it is there.
    support.use_resources = ["network"]
    support.verbose = 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        tests = unittest.defaultTestLoader.loadTestsFromName("test." + sys.argv[1])
        runner = unittest.TextTestRunner(stream=sys.stderr, verbosity=2, resultclass=Result)
        runner.run(keep(tests, re.compile(sys.argv[2])))
        os.chdir("/")
    say("end", sys.argv[1])


if __name__ == "__main__":
    main()
