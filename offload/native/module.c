/* offload._native: the table as a Python object. See offload/native.pyi for what each method means. */
#include "module.h"

#include <openssl/opensslv.h>
#include <string.h>

typedef struct {
    PyObject_HEAD
    struct table *table;
    Py_buffer ledger;
    Ring *ring; /* that of an adapter */
} Table;

static int table_init(Table *self, PyObject *arguments, PyObject *named)
{
    Py_buffer ledger, seed;
    (void)named;
    if (self->table != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "a table is made once");
        return -1;
    }
    if (!PyArg_ParseTuple(arguments, "w*y*", &ledger, &seed))
        return -1;
    uint8_t octets[16] = {0};
    memcpy(octets, seed.buf, (size_t)seed.len < sizeof octets ? (size_t)seed.len : sizeof octets);
    PyBuffer_Release(&seed);
    size_t slots = (size_t)ledger.len / sizeof(struct account);
    if ((uintptr_t)ledger.buf % 64 != 0 || slots == 0 || slots > UINT32_MAX) {
        PyBuffer_Release(&ledger);
        PyErr_SetString(PyExc_ValueError, "a ledger is a mapping with room for one account or more");
        return -1;
    }
    self->table = table_new(ledger.buf, (uint32_t)slots, octets);
    if (self->table == NULL) {
        PyBuffer_Release(&ledger);
        PyErr_NoMemory();
        return -1;
    }
    self->ledger = ledger;
    return 0;
}

static void table_dealloc(Table *self)
{
    if (self->table != NULL) {
        table_free(self->table);
        PyBuffer_Release(&self->ledger);
    }
    Py_XDECREF(self->ring);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static bool known_slot(const Table *self, unsigned slot)
{
    if (slot < self->table->slots)
        return true;
    PyErr_Format(PyExc_IndexError, "no slot %u", slot);
    return false;
}

/* Associations ----------------------------------------------------------------------------------------- */

static PyObject *add(Table *self, struct association sa, int cipher, const Py_buffer *key, const Py_buffer *salt,
                     bool inbound)
{
    struct association *made = NULL;
    if (salt->len == sizeof sa.salt) {
        memcpy(sa.salt, salt->buf, sizeof sa.salt);
        sa.aead = aead_new((enum cipher)cipher, key->buf, (size_t)key->len);
        made = sa.aead == NULL ? NULL : PyMem_RawMalloc(sizeof *made);
    }
    if (made == NULL) {
        aead_free(salt->len == sizeof sa.salt ? sa.aead : NULL);
        PyErr_SetString(PyExc_ValueError, "no such cipher, or its key or salt has another length");
        return NULL;
    }
    *made = sa;
    if (!table_add(self->table, made, inbound))
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *add_outbound(Table *self, PyObject *arguments)
{
    struct association sa = {0};
    Py_buffer key, salt, local, peer;
    int cipher, esn, tunnel, udp, wildcard;
    unsigned long long octets, packets;
    if (!PyArg_ParseTuple(arguments, "IIiy*y*pppiipiiy*Hy*HKK", &sa.slot, &sa.spi, &cipher, &key, &salt, &esn, &tunnel,
                          &udp, &sa.fd, &sa.fd_cut, &wildcard, &sa.dscp, &sa.df, &local, &sa.local_port, &peer,
                          &sa.peer_port, &octets, &packets))
        return NULL;
    PyObject *result = NULL;
    sa.esn = esn, sa.tunnel = tunnel, sa.udp = udp, sa.wildcard = wildcard;
    sa.most_octets = octets, sa.most_packets = packets;
    sa.six = local.len == 16;
    if (local.len != peer.len || (local.len != 4 && local.len != 16))
        PyErr_SetString(PyExc_ValueError, "addresses have 4 or 16 octets, both the same");
    else if (known_slot(self, sa.slot)) {
        memcpy(sa.local, local.buf, (size_t)local.len);
        memcpy(sa.peer, peer.buf, (size_t)peer.len);
        result = add(self, sa, cipher, &key, &salt, false);
    }
    PyBuffer_Release(&key);
    PyBuffer_Release(&salt);
    PyBuffer_Release(&local);
    PyBuffer_Release(&peer);
    return result;
}

static PyObject *add_inbound(Table *self, PyObject *arguments)
{
    struct association sa = {.fd = -1, .fd_cut = -1};
    Py_buffer key, salt;
    int cipher, esn, tunnel;
    unsigned long long octets, packets;
    if (!PyArg_ParseTuple(arguments, "IIiy*y*ppIKK", &sa.slot, &sa.spi, &cipher, &key, &salt, &esn, &tunnel,
                          &sa.window, &octets, &packets))
        return NULL;
    PyObject *result = NULL;
    sa.esn = esn, sa.tunnel = tunnel, sa.most_octets = octets, sa.most_packets = packets;
    if (sa.window < 1 || sa.window > 64 * WINDOW_WORDS)
        PyErr_SetString(PyExc_ValueError, "a replay window has 1 to 4096 numbers");
    else if (known_slot(self, sa.slot))
        result = add(self, sa, cipher, &key, &salt, true);
    PyBuffer_Release(&key);
    PyBuffer_Release(&salt);
    return result;
}

static PyObject *remove_slot(Table *self, PyObject *arguments)
{
    unsigned slot;
    if (!PyArg_ParseTuple(arguments, "I", &slot) || !known_slot(self, slot))
        return NULL;
    table_remove(self->table, slot);
    Py_RETURN_NONE;
}

static PyObject *limit(Table *self, PyObject *arguments)
{
    unsigned slot;
    int inbound;
    unsigned long long octets, packets;
    if (!PyArg_ParseTuple(arguments, "IpKK", &slot, &inbound, &octets, &packets) || !known_slot(self, slot))
        return NULL;
    struct association *sa = (inbound ? self->table->inbound : self->table->outbound)[slot];
    if (sa != NULL)
        sa->most_octets = octets, sa->most_packets = packets;
    Py_RETURN_NONE;
}

/* What an adapter has ---------------------------------------------------------------------------------- */

static PyObject *place(Table *self, PyObject *arguments)
{
    unsigned slot, high;
    int placed;
    unsigned long long handle;
    if (!PyArg_ParseTuple(arguments, "IpKI", &slot, &placed, &handle, &high) || !known_slot(self, slot))
        return NULL;
    struct association *out = self->table->outbound[slot], *in = self->table->inbound[slot];
    if (out != NULL)
        out->placed = placed;
    if (in != NULL)
        in->handle = handle, in->high = high;
    Py_RETURN_NONE;
}

static PyObject *marked(Table *self, PyObject *arguments)
{
    unsigned slot;
    if (!PyArg_ParseTuple(arguments, "I", &slot) || !known_slot(self, slot))
        return NULL;
    struct association none = {0}, *sa = self->table->inbound[slot];
    sa = sa == NULL ? &none : sa;
    PyObject *result = Py_BuildValue("KK", (unsigned long long)sa->marked_octets,
                                     (unsigned long long)sa->marked_packets);
    sa->marked_octets = sa->marked_packets = 0;
    return result;
}

/* Flows ------------------------------------------------------------------------------------------------ */

static bool whole_key(const uint8_t *data, Py_ssize_t size, uint8_t key[KEY])
{
    if (size != 13 && size != 37) {
        PyErr_SetString(PyExc_ValueError, "a flow key has 13 octets, or 37 in IPv6");
        return false;
    }
    memset(key, 0, KEY);
    memcpy(key, data, (size_t)size);
    key[KEY - 1] = size == 13 ? 4 : 6;
    return true;
}

static PyObject *add_route(Table *self, PyObject *arguments)
{
    const uint8_t *data;
    Py_ssize_t size;
    uint8_t key[KEY];
    unsigned slot, fits;
    if (!PyArg_ParseTuple(arguments, "y#II", &data, &size, &slot, &fits) || !known_slot(self, slot)
        || !whole_key(data, size, key))
        return NULL;
    return PyBool_FromLong(table_add_route(self->table, key, slot, fits));
}

static PyObject *remove_route(Table *self, PyObject *arguments)
{
    const uint8_t *data;
    Py_ssize_t size;
    uint8_t key[KEY];
    if (!PyArg_ParseTuple(arguments, "y#", &data, &size) || !whole_key(data, size, key))
        return NULL;
    struct route *route = table_route(self->table, key);
    if (route != NULL)
        route->gone = true;
    Py_RETURN_NONE;
}

static PyObject *clear_routes(Table *self, PyObject *unused)
{
    (void)unused;
    self->table->route_generation++;
    self->table->route_count = 0;
    Py_RETURN_NONE;
}

static PyObject *clear_admitted(Table *self, PyObject *unused)
{
    (void)unused;
    self->table->admitted_generation++;
    self->table->admitted_count = 0;
    Py_RETURN_NONE;
}

static PyObject *admit(Table *self, PyObject *arguments)
{
    const uint8_t *data;
    Py_ssize_t size;
    uint8_t key[KEY];
    unsigned slot;
    if (!PyArg_ParseTuple(arguments, "Iy#", &slot, &data, &size) || !known_slot(self, slot)
        || !whole_key(data, size, key))
        return NULL;
    if (self->table->inbound[slot] != NULL)
        table_admit(self->table, self->table->inbound[slot]->serial, key);
    Py_RETURN_NONE;
}

/* The ledger ------------------------------------------------------------------------------------------- */

static PyObject *count(Table *self, PyObject *arguments)
{
    unsigned slot;
    int inbound;
    long long octets, packets;
    if (!PyArg_ParseTuple(arguments, "IpLL", &slot, &inbound, &octets, &packets) || !known_slot(self, slot))
        return NULL;
    struct account *account = self->table->ledger + slot;
    struct entry *entry = inbound ? &account->in : &account->out;
    entry_count(entry, (uint64_t)octets, (uint64_t)packets, monotonic());
    return Py_BuildValue("KK", (unsigned long long)__atomic_load_n(&entry->octets, __ATOMIC_RELAXED),
                         (unsigned long long)__atomic_load_n(&entry->packets, __ATOMIC_RELAXED));
}

static PyObject *read_entry(Table *self, PyObject *arguments)
{
    unsigned slot;
    int inbound;
    if (!PyArg_ParseTuple(arguments, "Ip", &slot, &inbound) || !known_slot(self, slot))
        return NULL;
    const struct account *account = self->table->ledger + slot;
    const struct entry *entry = inbound ? &account->in : &account->out;
    return Py_BuildValue("KKK", (unsigned long long)__atomic_load_n(&entry->octets, __ATOMIC_RELAXED),
                         (unsigned long long)__atomic_load_n(&entry->packets, __ATOMIC_RELAXED),
                         (unsigned long long)__atomic_load_n(&entry->number, __ATOMIC_RELAXED));
}

static PyObject *number(Table *self, PyObject *arguments)
{
    unsigned slot, count = 1;
    int esn;
    if (!PyArg_ParseTuple(arguments, "Ip|I", &slot, &esn, &count) || !known_slot(self, slot))
        return NULL;
    uint64_t before = entry_reserve(&self->table->ledger[slot].out, count, esn ? UINT64_MAX : UINT32_MAX);
    if (before == UINT64_MAX)
        Py_RETURN_NONE;
    return PyLong_FromUnsignedLongLong(before + 1);
}

static PyObject *check(Table *self, PyObject *arguments)
{
    unsigned slot, window, low;
    int esn;
    uint64_t found;
    if (!PyArg_ParseTuple(arguments, "IIpI", &slot, &window, &esn, &low) || !known_slot(self, slot))
        return NULL;
    int reason = window_check(self->table->ledger + slot, window, esn, low, &found);
    if (reason != -1)
        return PyLong_FromLong(-reason);
    return PyLong_FromUnsignedLongLong(found);
}

static PyObject *accept_number(Table *self, PyObject *arguments)
{
    unsigned slot, window;
    unsigned long long found;
    if (!PyArg_ParseTuple(arguments, "IIK", &slot, &window, &found) || !known_slot(self, slot))
        return NULL;
    return PyBool_FromLong(window_accept(self->table->ledger + slot, window, found));
}

static PyObject *drops(Table *self, PyObject *unused)
{
    (void)unused;
    PyObject *result = PyTuple_New(REASONS);
    for (int i = 0; result != NULL && i < REASONS; i++)
        PyTuple_SET_ITEM(result, i, PyLong_FromUnsignedLongLong(self->table->drops[i]));
    return result;
}

/* Pumps ------------------------------------------------------------------------------------------------ */

static PyObject *packet_up(const struct table *table)
{
    return Py_BuildValue("Iy#", table->spare_spi, table->spare + VNET, (Py_ssize_t)table->spare_size);
}

static PyObject *datagram_up(const struct table *table)
{
    const struct arrival *from = &table->arrival;
    Py_ssize_t address = from->six ? 16 : 4;
    return Py_BuildValue("y#y#Hy#Iy#O", from->buffer + from->up_at, (Py_ssize_t)from->up_size, from->source, address,
                         from->source_port, from->destination, address, (unsigned)from->traffic, from->buffer,
                         (Py_ssize_t)from->head, from->udp ? Py_True : Py_False);
}

static PyObject *handed_up(const struct table *table, enum pumped result)
{
    switch (result) {
    case FRAME_UP:
        return PyBytes_FromStringAndSize((const char *)table->incoming, (Py_ssize_t)table->incoming_used);
    case DATAGRAM_UP:
        return datagram_up(table);
    case ARRIVAL_UP:
        return arrival_up(table->ring);
    case PACKET_UP:
        return packet_up(table);
    default:
        Py_RETURN_NONE;
    }
}

static PyObject *add_source(Table *self, PyObject *arguments)
{
    int fd, kind;
    if (!PyArg_ParseTuple(arguments, "ii", &fd, &kind))
        return NULL;
    if (fd < 0 || fd >= DESCRIPTORS || kind < DEVICE || kind > RAW_SOCKET)
        return PyErr_Format(PyExc_ValueError, "no descriptor %d, or no kind %d", fd, kind);
    self->table->sources[fd] = (uint8_t)kind;
    if (kind == DEVICE)
        self->table->device = fd;
    Py_RETURN_NONE;
}

static PyObject *remove_source(Table *self, PyObject *arguments)
{
    int fd;
    if (!PyArg_ParseTuple(arguments, "i", &fd))
        return NULL;
    if (fd < 0 || fd >= DESCRIPTORS)
        return PyErr_Format(PyExc_ValueError, "no descriptor %d", fd);
    bool was = self->table->sources[fd] != NO_SOURCE;
    self->table->sources[fd] = NO_SOURCE;
    if (self->ring != NULL && self->ring->ring.bell == fd) {
        self->table->ring = NULL;
        Py_CLEAR(self->ring);
    }
    return PyBool_FromLong(was);
}

static PyObject *add_ring(Table *self, PyObject *arguments)
{
    Ring *ring;
    if (!PyArg_ParseTuple(arguments, "O!", &RingType, &ring))
        return NULL;
    if (self->ring != NULL || ring->ring.octets == NULL || ring->ring.bell < 0 || ring->ring.bell >= DESCRIPTORS)
        return PyErr_Format(PyExc_ValueError, "no ring that is open, or there is one");
    self->ring = (Ring *)Py_NewRef(ring);
    self->table->ring = &ring->ring;
    self->table->sources[ring->ring.bell] = RING;
    Py_RETURN_NONE;
}

static PyObject *carry(Table *self, PyObject *arguments)
{
    int poll, fd = -1;
    double idle, busy;
    enum pumped result;
    if (!PyArg_ParseTuple(arguments, "idd", &poll, &idle, &busy))
        return NULL;
    if (!(idle >= 0 && idle <= 3600 && busy >= 0 && busy <= 3600))
        return PyErr_Format(PyExc_ValueError, "at least 0 and at most 3600 seconds");
    if (self->ring != NULL && self->ring->ring.octets == NULL)
        return PyErr_Format(PyExc_ValueError, "the ring has been closed");
    Py_BEGIN_ALLOW_THREADS
    result = serve(self->table, poll, (uint64_t)(idle * 1e9), (uint64_t)(busy * 1e9), &fd);
    Py_END_ALLOW_THREADS
    if (result == DRAINED)
        Py_RETURN_NONE;
    return Py_BuildValue("iN", fd, handed_up(self->table, result));
}

static PyObject *receive_ring(Table *self, PyObject *arguments)
{
    Ring *from;
    int device, together;
    unsigned limit;
    if (!PyArg_ParseTuple(arguments, "O!iIp", &RingType, &from, &device, &limit, &together))
        return NULL;
    if (from->ring.octets == NULL)
        return PyErr_Format(PyExc_ValueError, "the ring has been closed");
    struct table *table = self->table;
    uint64_t taken = from->ring.count, frames = table->frames, octets = table->octets;
    enum pumped result;
    table->alone = !together;
    Py_BEGIN_ALLOW_THREADS
    result = pump_ring(table, &from->ring, device, limit, monotonic());
    Py_END_ALLOW_THREADS
    table->alone = false;
    PyObject *up = result == ARRIVAL_UP ? arrival_up(&from->ring) : handed_up(table, result);
    return up == NULL ? NULL : Py_BuildValue("KKKN", (unsigned long long)(from->ring.count - taken),
                                             (unsigned long long)(table->frames - frames),
                                             (unsigned long long)(table->octets - octets), up);
}

/* For an adapter ---------------------------------------------------------------------------------------- */

/* Have the frame that is the argument in `out`; 0 when Python has to look at it, -1 with an exception. */
static int sealed(struct table *table, PyObject *arguments, bool placed)
{
    const uint8_t *frame;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(arguments, "y#", &frame, &size))
        return -1;
    if ((size_t)size > table->incoming_size)
        return 0;
    memcpy(table->incoming, frame, (size_t)size);
    if (seal_frame(table, table->incoming, (size_t)size, placed, monotonic()))
        return 1;
    if (memcmp(table->incoming, frame, (size_t)size) == 0)
        return 0;
    PyErr_SetString(PyExc_AssertionError, "a frame for Python was changed");
    return -1;
}

static PyObject *frame_for_adapter(Table *self, PyObject *arguments)
{
    struct table *table = self->table;
    int done = sealed(table, arguments, true);
    if (done <= 0)
        return done == 0 ? Py_NewRef(Py_None) : NULL;
    const struct outgoing *out = &table->out;
    PyObject *made = PyList_New(out->count);
    for (int i = 0; made != NULL && i < out->count; i++) {
        const struct message *one = out->messages + i;
        PyObject *packet = Py_BuildValue("y#y#IO", out->buffer + one->at, (Py_ssize_t)one->size,
                                         out->buffer + one->plain_at, (Py_ssize_t)one->plain_size,
                                         (unsigned)one->traffic, one->df ? Py_True : Py_False);
        if (packet == NULL)
            Py_CLEAR(made);
        else
            PyList_SET_ITEM(made, i, packet);
    }
    table->out.count = 0;
    table->out.used = 0;
    return made;
}

/* The same without system calls, packet by packet ------------------------------------------------------ */

static PyObject *seal(Table *self, PyObject *arguments)
{
    struct table *table = self->table;
    int done = sealed(table, arguments, false);
    if (done <= 0)
        return done == 0 ? Py_NewRef(Py_None) : NULL;
    PyObject *trains = PyList_New(0);
    for (int i = 0; trains != NULL && i < table->out.count; i++) {
        const struct message *message = table->out.messages + i;
        PyObject *train = Py_BuildValue("IIIOy#", message->sa->slot, message->segment, (unsigned)message->traffic,
                                        message->df ? Py_True : Py_False, table->out.buffer + message->at, (Py_ssize_t)message->size);
        if (train == NULL || PyList_Append(trains, train) != 0)
            Py_CLEAR(trains);
        Py_XDECREF(train);
    }
    table->out.count = 0;
    table->out.used = 0;
    return trains;
}

static void append_frame(void *context, const uint8_t *frame, size_t size)
{
    PyObject *one = PyBytes_FromStringAndSize((const char *)frame, (Py_ssize_t)size);
    if (one != NULL)
        PyList_Append(context, one); /* a failure is found by the caller, who asks PyErr_Occurred */
    Py_XDECREF(one);
}

static PyObject *open_train(Table *self, PyObject *arguments)
{
    struct table *table = self->table;
    struct arrival from = {0};
    const uint8_t *data, *header;
    Py_ssize_t size, head;
    unsigned segment, traffic;
    int udp;
    if (!PyArg_ParseTuple(arguments, "y#Iy#Ip", &data, &size, &segment, &header, &head, &traffic, &udp))
        return NULL;
    if (head > 60 || head + size > LARGEST)
        return PyErr_Format(PyExc_ValueError, "no header, or datagrams, of this length");
    from.buffer = table->arrival.buffer;
    from.udp = udp, from.traffic = (uint8_t)traffic, from.head = (size_t)head;
    memcpy(from.buffer, header, (size_t)head);
    memcpy(from.buffer + head, data, (size_t)size);
    PyObject *results = PyList_New(0);
    if (results == NULL)
        return NULL;
    size_t at = (size_t)head, end = (size_t)(head + size);
    enum opened opened;
    do {
        size_t rest = end - at, one = segment != 0 && rest > segment ? segment : rest;
        opened = open_datagram(table, &from, from.buffer + at, one, monotonic(), append_frame, results);
        if (opened != GONE) {
            frame_close(table, append_frame, results);
            PyObject *up = opened == TO_ADMIT ? packet_up(table)
                                              : Py_BuildValue("(y#)", from.buffer + at, (Py_ssize_t)one);
            if (up != NULL)
                PyList_Append(results, up);
            Py_XDECREF(up);
        }
        at += one;
    } while (at < end && opened == GONE);
    frame_close(table, append_frame, results);
    if (PyErr_Occurred())
        Py_CLEAR(results);
    return results == NULL ? NULL : Py_BuildValue("Nn", results, (Py_ssize_t)at - head);
}

static PyMethodDef methods[] = {
    {"add_outbound", (PyCFunction)add_outbound, METH_VARARGS, NULL},
    {"add_inbound", (PyCFunction)add_inbound, METH_VARARGS, NULL},
    {"remove", (PyCFunction)remove_slot, METH_VARARGS, NULL},
    {"limit", (PyCFunction)limit, METH_VARARGS, NULL},
    {"place", (PyCFunction)place, METH_VARARGS, NULL},
    {"marked", (PyCFunction)marked, METH_VARARGS, NULL},
    {"add_route", (PyCFunction)add_route, METH_VARARGS, NULL},
    {"remove_route", (PyCFunction)remove_route, METH_VARARGS, NULL},
    {"clear_routes", (PyCFunction)clear_routes, METH_NOARGS, NULL},
    {"admit", (PyCFunction)admit, METH_VARARGS, NULL},
    {"clear_admitted", (PyCFunction)clear_admitted, METH_NOARGS, NULL},
    {"count", (PyCFunction)count, METH_VARARGS, NULL},
    {"read", (PyCFunction)read_entry, METH_VARARGS, NULL},
    {"number", (PyCFunction)number, METH_VARARGS, NULL},
    {"check", (PyCFunction)check, METH_VARARGS, NULL},
    {"accept", (PyCFunction)accept_number, METH_VARARGS, NULL},
    {"drops", (PyCFunction)drops, METH_NOARGS, NULL},
    {"add_source", (PyCFunction)add_source, METH_VARARGS, NULL},
    {"remove_source", (PyCFunction)remove_source, METH_VARARGS, NULL},
    {"add_ring", (PyCFunction)add_ring, METH_VARARGS, NULL},
    {"carry", (PyCFunction)carry, METH_VARARGS, NULL},
    {"receive", (PyCFunction)receive_ring, METH_VARARGS, NULL},
    {"frame", (PyCFunction)frame_for_adapter, METH_VARARGS, NULL},
    {"seal", (PyCFunction)seal, METH_VARARGS, NULL},
    {"open", (PyCFunction)open_train, METH_VARARGS, NULL},
    {NULL},
};

static PyTypeObject TableType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "offload._native.Table",
    .tp_basicsize = sizeof(Table),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)table_init,
    .tp_dealloc = (destructor)table_dealloc,
    .tp_methods = methods,
};

static PyObject *openssl_only(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    aead_openssl_only();
    return PyUnicode_FromString(OPENSSL_VERSION_TEXT);
}

static PyMethodDef functions[] = {
    {"openssl_only", openssl_only, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "offload._native", .m_doc = "The hot loop of the software engine.", .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit__native(void)
{
    static const char *const names[] = {REASON_NAMES};
    if (PyType_Ready(&TableType) != 0 || PyType_Ready(&RingType) != 0 || PyType_Ready(&AeadType) != 0)
        return NULL;
    PyObject *made = PyModule_Create(&module), *reasons = PyTuple_New(REASONS);
    if (made == NULL || reasons == NULL)
        return NULL;
    for (int i = 0; i < REASONS; i++)
        PyTuple_SET_ITEM(reasons, i, PyUnicode_FromString(names[i]));
    if (PyModule_AddObjectRef(made, "Table", (PyObject *)&TableType) != 0
        || PyModule_AddObjectRef(made, "Ring", (PyObject *)&RingType) != 0
        || PyModule_AddObjectRef(made, "Aead", (PyObject *)&AeadType) != 0
        || PyModule_AddObject(made, "REASONS", reasons) != 0
        || PyModule_AddIntConstant(made, "ACCOUNT", sizeof(struct account)) != 0
        || PyModule_AddStringConstant(made, "CIPHERS", aead_name()) != 0)
        return NULL;
    return made;
}
