/* Fuzz target of the native loop: frames from the TUN device, and what an authenticated peer may send. See
 * test_native.py. The input is read as a list of small orders, so that one input can be a whole train.
 */
#include "native.h"

#include <stdlib.h>
#include <string.h>

enum { SPI = 1001, SLOT = 0, WINDOW = 128, LONGEST = 60000 };

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
    seal_frame(table, table->incoming, size, 1);
    struct outgoing *out = &table->out;
    for (int i = 0; i < out->count; i++)
        if (out->messages[i].at + out->messages[i].size > out->size || out->messages[i].segment == 0)
            abort();
    out->count = 0, out->used = 0;
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
    uint64_t number = 1;
    while (input.size > 0) {
        if (take(&input, 1) & 1)
            receive(table, &input, &number);
        else
            transmit(table, &input);
    }
    return 0;
}
