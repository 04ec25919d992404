/* What the types of offload._native share. */
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "native.h"

typedef struct {
    PyObject_HEAD
    struct ring ring;
    Py_buffer memory;
} Ring;

extern PyTypeObject RingType, AeadType;

/* What was taken last and Python has to look at, or the one datagram of it: slot, then octets. */
PyObject *arrival_up(const struct ring *ring);
