/* offload._native.Ring: the ring of packets received as a Python object, one side of a port of offload.nic.rings. See
 * offload/_native.pyi for what each method means. */
#include "module.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

static int ring_init(Ring *self, PyObject *arguments, PyObject *named)
{
    Py_buffer memory;
    Py_ssize_t starts[3], slots, room;
    int bell, other_bell;
    (void)named;
    if (self->memory.obj != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "a ring is opened once");
        return -1;
    }
    if (!PyArg_ParseTuple(arguments, "w*nnnnnii", &memory, starts, starts + 1, starts + 2, &slots, &room, &bell,
                          &other_bell))
        return -1;
    size_t least = 256 + (size_t)slots * RING_STRIDE + (size_t)room, places[3];
    bool good = slots > 0 && slots <= 1 << 20 && room > 0 && room <= 1 << 30 && (uintptr_t)memory.buf % 64 == 0;
    for (int i = 0; good && i < 3; i++) {
        places[i] = (size_t)starts[i];
        good = starts[i] >= 0 && starts[i] % 64 == 0
            && places[i] + (i == 2 ? least : 256) <= (size_t)memory.len;
    }
    if (!good || !ring_open(&self->ring, memory.buf, places, (uint32_t)slots, (size_t)room)) {
        PyBuffer_Release(&memory);
        PyErr_SetString(PyExc_ValueError, "no memory of these rings");
        return -1;
    }
    self->ring.bell = bell, self->ring.other_bell = other_bell;
    self->memory = memory;
    return 0;
}

static void close_it(Ring *self)
{
    if (self->memory.obj == NULL)
        return;
    ring_close(&self->ring);
    PyBuffer_Release(&self->memory);
}

static void ring_dealloc(Ring *self)
{
    close_it(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *ring_close_it(Ring *self, PyObject *unused)
{
    (void)unused;
    close_it(self);
    Py_RETURN_NONE;
}

static bool is_open(const Ring *self)
{
    if (self->memory.obj == NULL)
        PyErr_SetString(PyExc_ValueError, "the ring has been closed");
    return self->memory.obj != NULL;
}

PyObject *arrival_up(const struct ring *ring)
{
    struct ring_slot slot = ring->slot;
    size_t before = (size_t)slot.header + slot.numbers, size = ring->arrival.up_size;
    if (size != slot.size) /* one datagram of a train */
        slot.size = (uint32_t)size, slot.segment = 0;
    PyObject *made = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(sizeof slot + before + size));
    if (made == NULL)
        return NULL;
    uint8_t *at = (uint8_t *)PyBytes_AS_STRING(made);
    memcpy(at, &slot, sizeof slot);
    memcpy(at + sizeof slot, ring->octets, before);
    memcpy(at + sizeof slot + before, ring->octets + ring->arrival.up_at, size);
    return made;
}

static PyObject *take(Ring *self, PyObject *arguments)
{
    unsigned limit, octets;
    if (!PyArg_ParseTuple(arguments, "II", &limit, &octets) || !is_open(self))
        return NULL;
    PyObject *found = PyList_New(0);
    for (size_t left = octets; found != NULL && limit > 0 && ring_take(&self->ring); limit--) {
        ring_understood(&self->ring); /* for where it is; whatever it is, it goes up */
        PyObject *one = arrival_up(&self->ring);
        self->ring.arrival.at = self->ring.arrival.size;
        if (one == NULL || PyList_Append(found, one) != 0)
            Py_CLEAR(found);
        Py_XDECREF(one);
        if (self->ring.arrival.up_size >= left)
            break;
        left -= self->ring.arrival.up_size;
    }
    return found;
}

/* What a host does that protects nothing: a system call and a copy for each packet. */
static PyObject *hand_on(Ring *self, PyObject *arguments)
{
    struct ring *ring = &self->ring;
    int fd, protocol;
    unsigned limit;
    if (!PyArg_ParseTuple(arguments, "iiI", &fd, &protocol, &limit) || !is_open(self))
        return NULL;
    unsigned long long taken = 0, frames = 0, octets = 0;
    bool other = false;
    Py_BEGIN_ALLOW_THREADS
    for (; taken < limit && !other && ring_take(ring); taken++) {
        ring_understood(ring);
        ring->arrival.at = ring->arrival.size;
        other = ring->slot.protocol != protocol;
        if (other)
            continue;
        ssize_t done;
        do
            done = write(fd, ring->octets + ring->arrival.up_at, ring->slot.size);
        while (done < 0 && errno == EINTR);
        frames++;
        octets += ring->slot.size;
    }
    ring_publish(ring);
    Py_END_ALLOW_THREADS
    PyObject *up = other ? arrival_up(ring) : Py_NewRef(Py_None);
    return up == NULL ? NULL : Py_BuildValue("KKKN", taken, frames, octets, up);
}

/* Sleep as the loop does (`serve`), which has other sources as well. */
static PyObject *wait_for(Ring *self, PyObject *unused)
{
    struct ring *ring = &self->ring;
    (void)unused;
    if (!is_open(self))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    struct pollfd bell = {.fd = ring->bell, .events = POLLIN};
    if (!ring_doze(ring))
        ring_sleep(ring, false);
    else if (poll(&bell, 1, -1) > 0)
        ring_hear(ring);
    Py_END_ALLOW_THREADS
    return PyErr_CheckSignals() == 0 ? Py_NewRef(Py_None) : NULL;
}

/* A side of a port, as offload.nic.rings.Reader is ---------------------------------------------------------- */

static PyObject *tell(Ring *self, PyObject *unused)
{
    (void)unused;
    if (!is_open(self))
        return NULL;
    ring_tell(&self->ring);
    Py_RETURN_NONE;
}

static PyObject *awaited(Ring *self, PyObject *unused)
{
    (void)unused;
    return is_open(self) ? PyBool_FromLong(ring_awaited(&self->ring)) : NULL;
}

static PyObject *sleep_on(Ring *self, PyObject *unused)
{
    (void)unused;
    if (!is_open(self))
        return NULL;
    ring_sleep(&self->ring, true);
    Py_RETURN_NONE;
}

static PyObject *wake(Ring *self, PyObject *unused)
{
    (void)unused;
    if (!is_open(self))
        return NULL;
    ring_sleep(&self->ring, false);
    Py_RETURN_NONE;
}

static PyObject *stirred(Ring *self, PyObject *unused)
{
    (void)unused;
    return is_open(self) ? PyBool_FromLong(ring_stirred(&self->ring)) : NULL;
}

static PyObject *get_moved(Ring *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(self->ring.count != self->ring.told);
}

static PyObject *get_broken(Ring *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(self->ring.broken);
}

static PyMethodDef methods[] = {
    {"take", (PyCFunction)take, METH_VARARGS, NULL},
    {"hand_on", (PyCFunction)hand_on, METH_VARARGS, NULL},
    {"wait", (PyCFunction)wait_for, METH_NOARGS, NULL},
    {"tell", (PyCFunction)tell, METH_NOARGS, NULL},
    {"awaited", (PyCFunction)awaited, METH_NOARGS, NULL},
    {"sleep", (PyCFunction)sleep_on, METH_NOARGS, NULL},
    {"wake", (PyCFunction)wake, METH_NOARGS, NULL},
    {"stirred", (PyCFunction)stirred, METH_NOARGS, NULL},
    {"close", (PyCFunction)ring_close_it, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef properties[] = {
    {"moved", (getter)get_moved, NULL, NULL, NULL},
    {"broken", (getter)get_broken, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject RingType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "offload._native.Ring",
    .tp_basicsize = sizeof(Ring),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)ring_init,
    .tp_dealloc = (destructor)ring_dealloc,
    .tp_methods = methods,
    .tp_getset = properties,
};
