/* offload._native.Aead: one key, packet by packet, for the simulated adapter, whose table is in Python. */
#include "module.h"

typedef struct {
    PyObject_HEAD
    struct aead *aead;
} Aead;

static int aead_init(Aead *self, PyObject *arguments, PyObject *named)
{
    int cipher;
    const uint8_t *key;
    Py_ssize_t size;
    (void)named;
    if (!PyArg_ParseTuple(arguments, "iy#", &cipher, &key, &size))
        return -1;
    if (self->aead != NULL || (cipher != AES_GCM && cipher != CHACHA20_POLY1305)) {
        PyErr_SetString(PyExc_ValueError, "no such cipher, or made twice");
        return -1;
    }
    self->aead = aead_new((enum cipher)cipher, key, (size_t)size);
    if (self->aead == NULL)
        PyErr_SetString(PyExc_ValueError, "no such cipher with a key of this size");
    return self->aead == NULL ? -1 : 0;
}

static void aead_dealloc(Aead *self)
{
    if (self->aead != NULL)
        aead_free(self->aead);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *aead_apply(Aead *self, PyObject *arguments, bool seal)
{
    const uint8_t *nonce, *aad, *data;
    Py_ssize_t nonce_size, aad_size, size;
    if (!PyArg_ParseTuple(arguments, "y#y#y#", &nonce, &nonce_size, &aad, &aad_size, &data, &size))
        return NULL;
    if (self->aead == NULL || nonce_size != 12 || (!seal && size < ICV)) {
        PyErr_SetString(PyExc_ValueError, "not a nonce of 12 octets, or no room for a check value");
        return NULL;
    }
    size_t text = (size_t)size - (seal ? 0 : ICV);
    PyObject *made = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(text + (seal ? ICV : 0)));
    if (made == NULL)
        return NULL;
    uint8_t *out = (uint8_t *)PyBytes_AS_STRING(made);
    bool good = seal ? aead_seal(self->aead, nonce, aad, (size_t)aad_size, data, text, out)
                     : aead_open(self->aead, nonce, aad, (size_t)aad_size, data, text, out);
    if (good)
        return made;
    Py_DECREF(made);
    PyErr_SetString(PyExc_ValueError, "the check value is wrong");
    return NULL;
}

static PyObject *aead_seal_one(Aead *self, PyObject *arguments) { return aead_apply(self, arguments, true); }
static PyObject *aead_open_one(Aead *self, PyObject *arguments) { return aead_apply(self, arguments, false); }

static PyMethodDef aead_methods[] = {
    {"seal", (PyCFunction)aead_seal_one, METH_VARARGS, NULL},
    {"open", (PyCFunction)aead_open_one, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

PyTypeObject AeadType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "offload._native.Aead",
    .tp_basicsize = sizeof(Aead),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)aead_init,
    .tp_dealloc = (destructor)aead_dealloc,
    .tp_methods = aead_methods,
};
