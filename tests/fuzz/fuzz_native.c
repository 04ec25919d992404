/* Fuzz target of the native loop: frames from the TUN device, what an authenticated peer may send, and what an adapter
 * may leave in the memory it shares. See test_native.py. The input is read as a list of small orders, so that one input can be a whole train.
 */
#include "native.h"

#include <stdlib.h>
#include <string.h>

enum { SPI = 1001, SLOT = 0, WINDOW = 128, LONGEST = 60000, HANDLE = 65537, RING_SLOTS = 4, RING_ROOM = 1 << 17,
       RING_START = 8192 };

static const uint8_t KEY_OCTETS[16] = "sixteen octets!!", SALT[4] = "salt";
static struct account ledger[1] __attribute__((aligned(64)));

struct input {
    const uint8_t *data;
    size_t size;
};

static unsigned take(struct input *input, unsigned count)
{
    unsigned value = 0;
    for (; count > 0 && input->size > 0; count--, input->data++, input->size--)
        value = value << 8 | *input->data;
    return value;
}

static struct association *association(bool inbound, bool tunnel, bool udp)
{
    struct association *sa = calloc(1, sizeof *sa);
    sa->aead = aead_new(AES_GCM, KEY_OCTETS, sizeof KEY_OCTETS);
    memcpy(sa->salt, SALT, sizeof SALT);
    sa->slot = SLOT, sa->spi = SPI, sa->window = WINDOW, sa->fd = -1;
    sa->tunnel = tunnel, sa->udp = udp && !inbound, sa->dscp = sa->df = -1;
    sa->most_octets = sa->most_packets = UINT64_MAX;
    sa->handle = inbound ? HANDLE : 0;
    return sa;
}

/* What the kernel would say of a frame for the device: lengths and offsets must lie inside. */
static void check_frame(void *context, const uint8_t *frame, size_t size)
{
    (void)context;
    struct virtio_net_hdr header;
    memcpy(&header, frame, VNET);
    size -= VNET;
    if (size < 20 || size > LARGEST)
        abort();
    if (header.gso_type != VIRTIO_NET_HDR_GSO_NONE
        && (header.gso_size == 0 || header.hdr_len > size || header.csum_start + header.csum_offset + 2u > size))
        abort();
}

static void admit(struct table *table)
{
    uint8_t key[KEY];
    if (flow_key(table->spare + VNET, table->spare_size, key))
        table_admit(table, table->inbound[SLOT]->serial, key);
}

/* Seal text that the input gives, trailer included, as a peer with the key would; the octets on the wire. */
static size_t seal_text(const uint8_t *text, size_t size, uint64_t number, uint8_t *out)
{
    struct association *sa = association(false, true, false);
    uint8_t nonce[12];
    put32(out, SPI);
    put32(out + 4, (uint32_t)number);
    put32(out + 8, 0);
    put32(out + 12, (uint32_t)number);
    memcpy(nonce, SALT, 4);
    memcpy(nonce + 4, out + 8, 8);
    aead_seal(sa->aead, nonce, out, 8, text, size, out + 16);
    aead_free(sa->aead);
    free(sa);
    return 16 + size + ICV;
}

static void receive(struct table *table, struct input *input, uint64_t *number)
{
    static uint8_t train[LONGEST + 4096], text[4096];
    struct arrival from = {.buffer = train, .udp = take(input, 1) & 1, .traffic = (uint8_t)take(input, 1)};
    if (!from.udp) {
        memset(train, 0, 20);
        train[0] = 0x45, train[9] = 50;
        from.head = 20;
    }
    size_t used = from.head, count = take(input, 1) % 8;
    while (count-- > 0 && used < LONGEST) {
        unsigned kind = take(input, 1), again = take(input, 1);
        size_t size = take(input, 2) % 2048, given = size < input->size ? size : input->size;
        memset(text, 0, sizeof text);
        memcpy(text, input->data, given);
        input->data += given, input->size -= given;
        if (kind & 1) { /* a plain inner packet, right but for what the input says */
            text[0] = 0x45;
            put16(text + 2, (uint32_t)(size < 20 ? 20 : size));
            text[9] = kind & 2 ? IPPROTO_TCP : IPPROTO_UDP;
            text[6] = 0x40, text[7] = 0;
        }
        if (kind & 4) { /* a right trailer */
            size_t pad = (size_t)-(size + 2) & 3;
            for (size_t i = 0; i < pad; i++)
                text[size + i] = (uint8_t)(i + 1);
            text[size + pad] = (uint8_t)pad, text[size + pad + 1] = from.udp ? 4 : IPPROTO_TCP;
            size += pad + 2;
        }
        used += seal_text(text, size, *number += again % 4, train + used);
    }
    size_t segment = take(input, 2) % 2100 + 1, at = from.head;
    while (at < used) {
        size_t one = used - at < segment ? used - at : segment;
        if (open_datagram(table, &from, train + at, one, 1, check_frame, NULL) == TO_ADMIT)
            admit(table);
        at += one;
    }
    frame_close(table, check_frame, NULL);
}

static void transmit(struct table *table, struct input *input)
{
    uint8_t key[KEY];
    size_t size = take(input, 2), given = size < input->size ? size : input->size;
    if (size > table->incoming_size)
        size = table->incoming_size;
    if (given > size)
        given = size;
    memset(table->incoming, 0, size);
    memcpy(table->incoming, input->data, given);
    input->data += given, input->size -= given;
    if (size > VNET + 44) { /* lengths that fit reach further */
        uint8_t *packet = table->incoming + VNET;
        if (packet[0] >> 4 == 4)
            put16(packet + 2, (uint32_t)(size - VNET));
        else
            put16(packet + 4, (uint32_t)(size - VNET - 40));
    }
    if (size > VNET && flow_key(table->incoming + VNET, size - VNET, key))
        table_add_route(table, key, SLOT, 1500);
    seal_frame(table, table->incoming, size, table->outbound[SLOT]->placed, 1);
    struct outgoing *out = &table->out;
    for (int i = 0; i < out->count; i++)
        if (out->messages[i].at + out->messages[i].size > out->size || out->messages[i].segment == 0
            || out->messages[i].plain_at + out->messages[i].plain_size > out->used)
            abort();
    out->count = 0, out->used = 0;
}

/* Memory that an adapter shares with us. Where the input does not say otherwise, there is a packet that it opened. */
static uint8_t shared[RING_START + 256 + RING_SLOTS * RING_STRIDE + RING_ROOM] __attribute__((aligned(4096)));

static void poke(struct input *input, size_t at, size_t size)
{
    for (unsigned count = take(input, 1) % 16; count > 0; count--)
        shared[(at + take(input, 3) % size) % sizeof shared] = (uint8_t)take(input, 1);
}

static void put(struct ring *ring, struct input *input, uint64_t *number)
{
    struct ring_slot slot = {.handle = HANDLE, .protocol = 50, .flags = 1, .source.version = 4, .destination.version = 4};
    unsigned kind = take(input, 1), count = 2 + take(input, 1) % 40, segment = 1 + take(input, 2) % 1500;
    uint8_t *room = shared + RING_START + 256 + RING_SLOTS * RING_STRIDE, *octets = room + ring->at;
    slot.size = take(input, 2) % 20000;
    slot.header = kind & 1 ? 0 : 20;
    slot.numbers = kind & 2 ? 4 * count : 0;
    slot.traffic = (uint8_t)take(input, 1);
    if (kind & 4) /* in UDP */
        slot.local.version = slot.peer.version = 4;
    if (kind & 2) /* put together from so many */
        slot.size = ESP_HEADER + VNET + 40 + count * segment - take(input, 2) % segment;
    if (kind & 8) { /* it did not open it: a train, perhaps */
        slot.flags = 0, slot.numbers = 0;
        slot.segment = (uint16_t)take(input, 2);
    }
    if (ring->at + slot.header + slot.numbers + slot.size < RING_ROOM) {
        memset(octets, 0, slot.header + slot.numbers + slot.size);
        octets[0] = slot.header ? 0x45 : 0;
        for (unsigned i = 0; i < slot.numbers / 4; i++) {
            unsigned step = take(input, 1);
            uint32_t low = (uint32_t)(*number += step < 250 ? 1 : step - 250);
            memcpy(octets + slot.header + 4 * i, &low, sizeof low);
        }
        uint8_t *esp = octets + slot.header + slot.numbers, *inner = esp + (slot.numbers ? ESP_HEADER : ESP_HEADER + IV);
        size_t given = slot.size < input->size ? slot.size : input->size;
        memcpy(esp, input->data, given < 4096 ? given : 4096);
        input->data += given, input->size -= given;
        if (slot.size >= 64) {
            put32(esp, SPI);
            if (slot.numbers == 0) {
                size_t text = slot.size - ESP_HEADER - IV - ICV;
                put32(esp + 4, (uint32_t)(*number += kind >> 4 & 1));
                inner[0] = 0x45, put16(inner + 2, (uint32_t)text - 2), inner[6] = inner[7] = 0, inner[9] = IPPROTO_UDP;
                inner[text - 2] = 0, inner[text - 1] = 4;
            } else {
                struct virtio_net_hdr offload = {.flags = 1, .gso_type = 1, .csum_start = 20, .csum_offset = 16};
                offload.gso_size = (uint16_t)segment;
                offload.hdr_len = (uint16_t)take(input, 1);
                memcpy(inner, &offload, VNET);
                inner += VNET;
                inner[0] = 0x45, put16(inner + 2, slot.size - ESP_HEADER - VNET), inner[6] = inner[7] = 0;
                inner[9] = IPPROTO_TCP, inner[32] = 0x50;
            }
        }
    }
    memcpy(shared + RING_START + 256 + ring->count % RING_SLOTS * RING_STRIDE, &slot, sizeof slot);
    uint64_t head = ring->count + 1;
    memcpy(shared + RING_START, &head, sizeof head);
    if (kind & 32) {
        poke(input, RING_START, 256 + RING_SLOTS * RING_STRIDE);
        poke(input, RING_START + 256 + RING_SLOTS * RING_STRIDE + ring->at % RING_ROOM, 100);
    }
}

/* What is not taken must be as it was: Python does it all again. */
static void open_one(struct table *table, struct arrival *from)
{
    size_t rest = from->size - from->at, size = rest < from->segment ? rest : from->segment;
    struct account before = ledger[SLOT];
    enum opened opened = open_datagram(table, from, from->buffer + from->at, size, 1, check_frame, NULL);
    if (opened == HANDED_UP && memcmp(&before, ledger + SLOT, sizeof before) != 0)
        abort();
    if (opened == TO_ADMIT)
        admit(table);
    if (from->marked && opened == HANDED_UP && table->inbound[SLOT]->window > 0) { /* the next one may pass */
        uint8_t key[KEY], *inner = from->buffer + from->at + (from->numbers ? ESP_HEADER + VNET : ESP_HEADER + IV);
        if (size > 64 && flow_key(inner, size - 32, key))
            table_admit(table, table->inbound[SLOT]->serial, key);
    }
    from->at += size;
}

static void attached(struct table *table, struct input *input, uint64_t *number)
{
    struct ring ring;
    static const size_t starts[3] = {0, 4096, RING_START};
    memset(shared, 0, sizeof shared);
    if (!ring_open(&ring, shared, starts, RING_SLOTS, RING_ROOM))
        abort();
    for (unsigned turns = take(input, 1) % 8; turns > 0; turns--) {
        put(&ring, input, number);
        while (ring_take(&ring))
            if (ring_understood(&ring))
                while (ring.arrival.at < ring.arrival.size)
                    open_one(table, &ring.arrival);
        frame_close(table, check_frame, NULL);
        ring_tell(&ring);
    }
    ring_close(&ring);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    unsigned modes = take(&input, 1);
    static struct table *table; /* made once, and as new for every input */
    if (table == NULL)
        table = table_new(ledger, 1, (const uint8_t *)"0123456789abcdef");
    memset(ledger, 0, sizeof ledger);
    table_remove(table, SLOT);
    table->route_generation++;
    table->route_count = 0;
    table_add(table, association(true, modes & 1, false), true);
    table_add(table, association(false, modes & 2, modes & 4), false);
    table->outbound[SLOT]->placed = modes & 8;
    uint64_t number = 1;
    while (input.size > 0) {
        unsigned order = take(&input, 1);
        if (order & 1)
            receive(table, &input, &number);
        else if (order & 2)
            transmit(table, &input);
        else
            attached(table, &input, &number);
    }
    return 0;
}
