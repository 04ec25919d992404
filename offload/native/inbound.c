/* From ESP packets to frames for the TUN device (RFC 4303 section 3.4): window, decryption, window again, padding,
 * ECN, and segments of one flow put together. A packet is decrypted to where it would stand behind the ones
 * before it, so that nothing is copied when it fits there. */
#include "native.h"

#include <arpa/inet.h>
#include <string.h>

enum { TCP_FIN = 0x01, TCP_PSH = 0x08, TCP_ACK = 0x10, NO_NEXT_HEADER = 59, UDP_SEGMENTS = 64 };

/* A decrypted packet: its headers need not stand together. */
struct packet {
    const uint8_t *ip, *rest;     /* IP header; what follows it */
    size_t head, size;            /* octets of each */
    uint8_t own[60];              /* the IP header, if it was made here */
};

/* RFC 6040 section 4.2, figure 4: the field delivered for inner (row) and outer one; 4 drops the packet. */
static const uint8_t DELIVERED[4][4] = {{0, 0, 0, 4}, {1, 1, 1, 3}, {2, 1, 2, 3}, {3, 3, 3, 3}};

static int drop(struct table *table, enum reason reason)
{
    table->drops[reason]++;
    return GONE;
}

/* Frames ----------------------------------------------------------------------------------------------- */

static uint64_t pseudo_header(const uint8_t *ip, size_t head, uint8_t protocol, size_t size)
{
    return (head == 40 ? sum(ip + 8, 32) : sum(ip + 12, 8)) + htons(protocol) + htons((uint16_t)size);
}

void frame_close(struct table *table, write_frame *write, void *context)
{
    struct frame *frame = &table->frame;
    if (frame->size == 0)
        return;
    uint8_t *packet = frame->buffer + VNET;
    struct virtio_net_hdr offload = {0};
    if (frame->count > 1) {
        bool four = frame->ip == 20, tcp = packet[four ? 9 : 6] == IPPROTO_TCP;
        size_t size = frame->size - frame->ip;
        offload.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
        offload.gso_type = !tcp ? VIRTIO_NET_HDR_GSO_UDP_L4
                         : four ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_TCPV6;
        offload.hdr_len = (uint16_t)frame->head;
        offload.gso_size = (uint16_t)frame->segment;
        offload.csum_start = (uint16_t)frame->ip;
        offload.csum_offset = tcp ? 16 : 6;
        if (four) {
            put16(packet + 2, (uint32_t)frame->size);
            packet[10] = packet[11] = 0;
            uint16_t value = (uint16_t)~fold(sum(packet, 20));
            memcpy(packet + 10, &value, 2);
        } else {
            put16(packet + 4, (uint32_t)size);
        }
        if (!tcp)
            put16(packet + frame->ip + 4, (uint32_t)size);
        /* the kernel, or the card, adds the rest to the pseudo header's sum */
        uint16_t begun = fold(pseudo_header(packet, frame->ip, tcp ? IPPROTO_TCP : IPPROTO_UDP, size));
        memcpy(packet + frame->ip + offload.csum_offset, &begun, 2);
    }
    memcpy(frame->buffer, &offload, VNET);
    write(context, frame->buffer, VNET + frame->size);
    frame->size = 0;
    frame->open = false;
}

/* Octets of the transport header when this is a segment that others can join, else 0: whole, with payload, right
 * checksum and, TCP, nothing but ACK, PSH and FIN. A wrong checksum must reach the host as it is. */
static size_t joinable(const struct packet *packet)
{
    const uint8_t *ip = packet->ip, *rest = packet->rest;
    uint8_t protocol = ip[0] >> 4 == 4 ? ip[9] : ip[6];
    size_t header;
    if (ip[0] >> 4 == 4 && (ip[0] != 0x45 || (ip[6] & 0x3F) != 0 || ip[7] != 0))
        return 0;
    if (protocol == IPPROTO_TCP && packet->size >= 20) {
        header = (size_t)(rest[12] >> 4) * 4;
        if (header < 20 || (rest[13] & ~(TCP_PSH | TCP_FIN)) != TCP_ACK || rest[12] & 0x0F)
            return 0;
    } else if (protocol == IPPROTO_UDP && packet->size >= 8) {
        header = 8;
        if ((rest[6] | rest[7]) == 0 || get16(rest + 4) != packet->size)
            return 0;
    } else {
        return 0;
    }
    if (packet->size <= header)
        return 0;
    uint64_t total = pseudo_header(ip, packet->head, protocol, packet->size) + sum(rest, packet->size);
    return fold(total) == 0xFFFF ? header : 0;
}

/* Whether a joinable packet with `header` octets of transport header continues the frame. */
static bool continues(const struct frame *frame, const struct packet *packet, size_t header)
{
    const uint8_t *ip = packet->ip, *rest = packet->rest, *was = frame->buffer + VNET, *had = was + frame->ip;
    size_t payload = packet->size - header;
    if (packet->head != frame->ip || packet->head + header != frame->head || payload > frame->segment
        || frame->size + payload > LARGEST)
        return false;
    if (packet->head == 20) {
        uint16_t step = (uint16_t)(get16(ip + 4) - frame->ident);
        bool counted = frame->step != 0 && step == 1, same = frame->step != 1 && step == 0 && ip[6] & 0x40;
        if (memcmp(ip, was, 2) != 0 || memcmp(ip + 6, was + 6, 4) != 0 || memcmp(ip + 12, was + 12, 8) != 0
            || !(counted || same))
            return false;
    } else if (memcmp(ip, was, 4) != 0 || memcmp(ip + 6, was + 6, 34) != 0) {
        return false;
    }
    if (header == 8)
        return memcmp(rest, had, 4) == 0 && frame->count < UDP_SEGMENTS;
    return memcmp(rest, had, 4) == 0 && get32(rest + 4) == frame->next && memcmp(rest + 8, had + 8, 5) == 0
        && memcmp(rest + 14, had + 14, 2) == 0 && memcmp(rest + 18, had + 18, header - 18) == 0;
}

/* Note what the next packet has to look like. */
static void joined(struct frame *frame, const struct packet *packet, size_t header)
{
    size_t payload = packet->size - header;
    bool udp = header == 8;
    if (packet->head == 20) {
        if (frame->count > 0)
            frame->step = get16(packet->ip + 4) != frame->ident;
        frame->ident = get16(packet->ip + 4);
    }
    if (!udp)
        frame->next = get32(packet->rest + 4) + (uint32_t)payload;
    frame->count++;
    frame->open = payload == frame->segment && (udp || (packet->rest[13] & (TCP_PSH | TCP_FIN)) == 0);
}

/* A packet that stands in the frame's buffer, or was copied there, is its beginning. */
static void begin(struct frame *frame, const struct packet *packet, size_t header)
{
    frame->size = packet->head + packet->size;
    frame->ip = packet->head, frame->head = packet->head + header;
    frame->segment = (uint32_t)(packet->size - header);
    frame->count = 0, frame->step = -1, frame->open = false;
    if (header > 0)
        joined(frame, packet, header);
}

/* Opening ---------------------------------------------------------------------------------------------- */

/* Tunnel mode: the packet inside, without padding for confidentiality, with ECN (offload.receiver._inner). */
static int inner_packet(const struct arrival *from, uint8_t next, uint8_t *text, size_t size, struct packet *packet)
{
    unsigned version = next == IPPROTO_IPIP ? 4 : next == IPPROTO_IPV6 ? 6 : 0;
    if (version == 0 || size == 0 || text[0] >> 4 != version)
        return MALFORMED;
    size_t length, head = 40;
    if (version == 4) {
        if (size < 20)
            return MALFORMED;
        head = (size_t)(text[0] & 15) * 4;
        length = get16(text + 2);
    } else {
        if (size < 40)
            return MALFORMED;
        length = 40u + get16(text + 4);
    }
    if (head < 20 || length < head || length > size)
        return MALFORMED;
    uint8_t traffic = version == 4 ? text[1] : (uint8_t)((text[0] & 15) << 4 | text[1] >> 4);
    uint8_t ecn = DELIVERED[traffic & 3][from->traffic & 3];
    if (ecn == 4)
        return CONGESTION;
    if (ecn != (traffic & 3)) {
        if (version == 4) {
            text[1] = (uint8_t)((traffic & 0xFC) | ecn);
            text[10] = text[11] = 0;
            uint16_t value = (uint16_t)~fold(sum(text, head));
            memcpy(text + 10, &value, 2);
        } else {
            text[1] = (uint8_t)((text[1] & 0xCF) | ecn << 4);
        }
    }
    packet->ip = text, packet->head = head;
    packet->rest = text + head, packet->size = length - head;
    return -1;
}

/* Transport mode over IPv4 without UDP: the header it came with, naming what is inside (offload.receiver._own). */
static int own_packet(const struct arrival *from, uint8_t next, const uint8_t *text, size_t size,
                      struct packet *packet)
{
    uint8_t *own = packet->own;
    memcpy(own, from->buffer, from->head);
    own[6] &= 0x40, own[7] = 0; /* fragments have been put together below us */
    own[9] = next;
    put16(own + 2, (uint32_t)(from->head + size));
    own[10] = own[11] = 0;
    uint16_t value = (uint16_t)~fold(sum(own, from->head));
    memcpy(own + 10, &value, 2);
    packet->ip = own, packet->head = from->head;
    packet->rest = text, packet->size = size;
    return -1;
}

static size_t copy_packet(uint8_t *place, const struct packet *packet)
{
    memmove(place, packet->ip, packet->head);
    memmove(place + packet->head, packet->rest, packet->size);
    return packet->head + packet->size;
}

static bool is_admitted(const struct table *table, uint64_t serial, const struct packet *packet)
{
    uint8_t key[KEY], start[64];
    size_t ports = packet->size < 4 ? packet->size : 4;
    if (packet->head + ports > sizeof start)
        return false;
    memcpy(start, packet->ip, packet->head);
    memcpy(start + packet->head, packet->rest, ports);
    return flow_key(start, packet->head + ports, key) && table_is_admitted(table, serial, key);
}

/* Put a packet that stands elsewhere behind the others, or begin another frame with it. */
static void append(struct table *table, const struct packet *packet, write_frame *write, void *context)
{
    struct frame *frame = &table->frame;
    size_t header = table->alone ? 0 : joinable(packet);
    if (frame->size > 0 && frame->open && header > 0 && continues(frame, packet, header)) {
        size_t payload = packet->size - header;
        memcpy(frame->buffer + VNET + frame->size, packet->rest + header, payload);
        joined(frame, packet, header);
        frame->size += payload;
        if (header > 8)
            frame->buffer[VNET + frame->ip + 13] |= packet->rest[13] & (TCP_PSH | TCP_FIN);
        return;
    }
    frame_close(table, write, context);
    copy_packet(frame->buffer + VNET, packet);
    begin(frame, packet, header);
}

/* Decrypt, and move the window. `place` has room for the text; what it holds is authentic when -1 is returned. */
static int decrypt(struct association *sa, const uint8_t *data, size_t size, uint8_t *place)
{
    uint64_t number;
    int reason = window_check(sa->account, sa->window, sa->esn, get32(data + 4), &number);
    if (reason != -1)
        return reason;
    uint8_t aad[12], nonce[12];
    memcpy(aad, data, 4);
    put32(aad + 4, (uint32_t)(number >> 32));
    put32(aad + 8, (uint32_t)number);
    memcpy(nonce, sa->salt, 4);
    memcpy(nonce + 4, data + ESP_HEADER, IV);
    if (!aead_open(sa->aead, nonce, sa->esn ? aad : data, sa->esn ? 12 : 8, data + ESP_HEADER + IV,
                   size - ESP_HEADER - IV - ICV, place))
        return UNVERIFIED;
    return window_accept(sa->account, sa->window, number) ? -1 : REPLAYED;
}

/* The packet in a text that was decrypted (RFC 4303 section 2.4). */
static int unwrap(const struct association *sa, const struct arrival *from, uint8_t *text, size_t size,
                  struct packet *packet)
{
    uint8_t pad = text[size - 2], next = text[size - 1];
    if (pad + 2u > size)
        return MALFORMED;
    size -= pad + 2u;
    for (unsigned i = 0; i < pad; i++)
        if (text[size + i] != i + 1)
            return MALFORMED;
    if (next == NO_NEXT_HEADER)
        return DUMMY;
    return sa->tunnel ? inner_packet(from, next, text, size, packet) : own_packet(from, next, text, size, packet);
}

/* Count a packet, if it is for its SA and no limit is near. */
static bool take(const struct table *table, struct association *sa, const struct packet *packet, uint64_t now)
{
    struct entry *entry = &sa->account->in;
    if (!is_admitted(table, sa->serial, packet)
        || !entry_take(entry, packet->head + packet->size, 1, sa->most_octets, sa->most_packets))
        return false;
    __atomic_store_n(&entry->last, now, __ATOMIC_RELAXED);
    return true;
}

/* What an adapter opened ------------------------------------------------------------------------------- */

/* One ESP packet, whose trailer and check value are still there. */
static enum opened open_verified(struct table *table, struct association *sa, const struct arrival *from, uint8_t *data,
                                 size_t size, uint64_t now, write_frame *write, void *context)
{
    if (size < ESP_HEADER + IV + 2 + ICV || (!sa->tunnel && (from->udp || from->head == 0)))
        return HANDED_UP;
    uint64_t number;
    uint8_t *text = data + ESP_HEADER + IV, before[12];
    if (window_check(sa->account, sa->window, sa->esn, get32(data + 4), &number) != -1 || number >> 32 != from->high)
        return HANDED_UP;
    struct packet packet;
    memcpy(before, text, sizeof before); /* where ECN is */
    if (unwrap(sa, from, text, size - ESP_HEADER - IV - ICV, &packet) != -1 || !take(table, sa, &packet, now)) {
        memcpy(text, before, sizeof before);
        return HANDED_UP;
    }
    size_t octets = packet.head + packet.size;
    if (!window_accept(sa->account, sa->window, number)) {
        entry_give_back(&sa->account->in, octets, 1);
        return drop(table, REPLAYED);
    }
    sa->marked_octets += octets, sa->marked_packets++;
    append(table, &packet, write, context);
    return GONE;
}

/* Octets of all headers of a frame for the device that stands for `count` packets, if the kernel would see it so, too;
 * else 0. */
static size_t frame_headers(const uint8_t *frame, size_t size, size_t count)
{
    struct virtio_net_hdr offload;
    const uint8_t *packet = frame + VNET;
    if (size < VNET + 40)
        return 0;
    size -= VNET;
    memcpy(&offload, frame, VNET);
    bool four = packet[0] == 0x45;
    size_t ip = four ? 20 : 40;
    if ((!four && packet[0] >> 4 != 6) || (four ? get16(packet + 2) : 40u + get16(packet + 4)) != size
        || size < ip + 20)
        return 0;
    bool tcp = packet[four ? 9 : 6] == IPPROTO_TCP;
    unsigned type = !tcp ? VIRTIO_NET_HDR_GSO_UDP_L4 : four ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_TCPV6;
    size_t head = ip + (tcp ? (size_t)(packet[ip + 12] >> 4) * 4 : 8);
    if (offload.flags != VIRTIO_NET_HDR_F_NEEDS_CSUM || offload.gso_type != type || offload.gso_size == 0
        || offload.csum_start != ip || offload.csum_offset != (tcp ? 16 : 6) || offload.hdr_len > size
        || head < ip + (tcp ? 20 : 8) || head >= size)
        return 0;
    return (size - head + offload.gso_size - 1) / offload.gso_size == count ? head : 0;
}

/* A frame that it put together from packets with the numbers that follow the header. They must rise: so each of them
 * that is new is still so when those before it are noted. */
static enum opened open_together(struct table *table, struct association *sa, const struct arrival *from, uint8_t *data,
                                 size_t size, uint64_t now, write_frame *write, void *context)
{
    uint8_t key[KEY], *frame = data + ESP_HEADER;
    const uint8_t *numbers = from->buffer + from->head;
    size -= ESP_HEADER;
    size_t head = frame_headers(frame, size, from->numbers);
    if (head == 0 || !flow_key(frame + VNET, size - VNET, key) || !table_is_admitted(table, sa->serial, key))
        return HANDED_UP;
    uint64_t last = 0, number;
    for (size_t i = 0; i < from->numbers; i++, last = number) {
        uint32_t low;
        memcpy(&low, numbers + 4 * i, sizeof low);
        if (window_check(sa->account, sa->window, sa->esn, low, &number) != -1 || number >> 32 != from->high
            || number <= last)
            return HANDED_UP;
    }
    uint64_t octets = size - VNET + (from->numbers - 1) * head;
    if (!entry_take(&sa->account->in, octets, from->numbers, sa->most_octets, sa->most_packets))
        return HANDED_UP;
    __atomic_store_n(&sa->account->in.last, now, __ATOMIC_RELAXED);
    for (size_t i = 0; i < from->numbers; i++) {
        uint32_t low;
        memcpy(&low, numbers + 4 * i, sizeof low);
        if (!window_accept(sa->account, sa->window, (uint64_t)from->high << 32 | low)) {
            /* another worker was faster with one of them, so with all: it is the same frame */
            entry_give_back(&sa->account->in, octets, from->numbers);
            table->drops[REPLAYED] += from->numbers;
            return GONE;
        }
    }
    sa->marked_octets += octets, sa->marked_packets += from->numbers;
    frame_close(table, write, context);
    write(context, frame, size);
    return GONE;
}

/* Believed for the SA that has its handle, and no other. What is not plain is Python's, and then nothing has been
 * changed. */
static enum opened open_marked(struct table *table, const struct arrival *from, uint8_t *data, size_t size,
                               uint64_t now, write_frame *write, void *context)
{
    struct association *sa = size < 12 ? NULL : table_spi(table, get32(data));
    if (sa == NULL || sa->handle == 0 || sa->handle != from->handle || sa->high != from->high)
        return HANDED_UP;
    return from->numbers == 0 ? open_verified(table, sa, from, data, size, now, write, context)
                              : open_together(table, sa, from, data, size, now, write, context);
}

/* Datagrams -------------------------------------------------------------------------------------------- */

enum opened open_datagram(struct table *table, const struct arrival *from, uint8_t *data, size_t size, uint64_t now,
                          write_frame *write, void *context)
{
    struct frame *frame = &table->frame;
    if (from->marked)
        return open_marked(table, from, data, size, now, write, context);
    if (size == 1 && from->udp && data[0] == 0xFF) /* a keepalive (RFC 3948 section 2.3) */
        return GONE;
    if (size < 12)
        return drop(table, MALFORMED);
    struct association *sa = table_spi(table, get32(data));
    if (sa == NULL || (!sa->tunnel && (from->udp || from->head == 0)))
        return HANDED_UP;
    if (size < ESP_HEADER + IV + 2 + ICV)
        return drop(table, MALFORMED);
    size_t length = size - ESP_HEADER - IV - ICV;
    if (frame->size > 0 && (!frame->open || frame->size + length > LARGEST))
        frame_close(table, write, context);

    /* behind the frame, with the headers over the end of what is there */
    uint8_t saved[100], *end = frame->buffer + VNET + frame->size, *text;
    size_t over = frame->size == 0 ? 0 : sa->tunnel ? frame->head : frame->head - frame->ip;
    text = frame->size > 0 ? end - over : sa->tunnel ? end : end + from->head;
    memcpy(saved, text, over);
    struct packet packet;
    int reason = decrypt(sa, data, size, text);
    if (reason == -1)
        reason = unwrap(sa, from, text, length, &packet);
    if (reason != -1) {
        memcpy(text, saved, over);
        return drop(table, (enum reason)reason);
    }
    if (!take(table, sa, &packet, now)) {
        table->spare_size = copy_packet(table->spare + VNET, &packet);
        table->spare_spi = sa->spi;
        memcpy(text, saved, over);
        return TO_ADMIT;
    }
    size_t header = table->alone ? 0 : joinable(&packet);
    if (frame->size == 0) {
        if (!sa->tunnel)
            memcpy(end, packet.ip, packet.head);
        begin(frame, &packet, header);
    } else if (header > 0 && continues(frame, &packet, header)) {
        joined(frame, &packet, header);
        uint8_t flags = header == 8 ? 0 : packet.rest[13] & (TCP_PSH | TCP_FIN);
        memcpy(text, saved, over);
        frame->size += packet.size - header;
        frame->buffer[VNET + frame->ip + 13] |= flags;
    } else {
        size_t all = copy_packet(table->spare + VNET, &packet);
        memcpy(text, saved, over);
        frame_close(table, write, context);
        uint8_t *other = frame->buffer;
        frame->buffer = table->spare;
        table->spare = other;
        packet.ip = frame->buffer + VNET, packet.rest = packet.ip + packet.head;
        packet.size = all - packet.head;
        begin(frame, &packet, header);
    }
    return GONE;
}
