/* From a frame of the TUN device to trains of ESP packets (RFC 4303, RFC 3948): segmentation, checksums, numbers,
 * encryption straight into the buffer that is sent from. */
#include "native.h"

#include <arpa/inet.h>
#include <string.h>

enum {
    MOST_MESSAGES = 128,              /* one frame may become, else it is Python's */
    MOST_OCTETS = 3 * (LARGEST + 1),
    TCP_FIN = 0x01, TCP_PSH = 0x08, TCP_CWR = 0x80,
    TTL = 64,
};

/* A frame understood: `count` packets of `head` octets of headers and up to `segment` of payload. */
struct plan {
    uint8_t *packet;
    size_t size, ip, head, segment, count;
    bool tcp;
    struct virtio_net_hdr offload;
};

/* Place for one ESP packet or, with `sa->udp`, a datagram's payload; in the latest train if it is one of it. */
static uint8_t *room(struct outgoing *out, struct association *sa, uint8_t traffic, bool df, size_t size)
{
    struct message *last = out->messages + out->count - 1;
    uint8_t *place = out->buffer + out->used;
    if (sa->udp && !sa->placed && out->count > 0 && last->sa == sa && last->traffic == traffic && last->df == df
        && !last->full
        && size <= last->segment && last->count < TRAIN_SEGMENTS && last->size + size <= TRAIN_OCTETS) {
        last->full = size < last->segment;
        last->size += (uint32_t)size;
        last->count++;
    } else {
        out->messages[out->count++] = (struct message){
            .sa = sa, .at = (uint32_t)out->used, .size = (uint32_t)size, .segment = (uint32_t)size, .count = 1,
            .fd = df ? sa->fd : sa->fd_cut, .traffic = traffic, .df = df,
        };
    }
    out->used += size;
    return place;
}

bool outgoing_has_room(const struct outgoing *out)
{
    return out->count + MOST_MESSAGES <= MESSAGES && out->used + MOST_OCTETS <= out->size;
}

static uint16_t next_ident(struct table *table)
{
    table->ident = table->ident == 0xFFFF ? 1 : table->ident + 1; /* the kernel replaces 0 */
    return table->ident;
}

static void ip_checksum(uint8_t *header, size_t size)
{
    header[10] = header[11] = 0;
    uint16_t value = (uint16_t)~fold(sum(header, size));
    memcpy(header + 10, &value, 2);
}

/* DF of the outer packet; see offload.sender. */
static bool dont_fragment(const struct association *sa, const uint8_t *packet)
{
    return sa->df >= 0 ? sa->df > 0 : packet[0] >> 4 == 6 || (packet[6] & 0x40) != 0;
}

/* The outer header of tunnel mode, or the packet's own one in transport mode, before `size` octets of ESP;
 * see offload.sender. */
static size_t outer_header(struct table *table, const struct association *sa, const uint8_t *packet,
                           uint8_t traffic, size_t size, uint8_t *out)
{
    bool four = packet[0] >> 4 == 4;
    if (!sa->tunnel) {
        size_t head = four ? 20 : 40;
        memcpy(out, packet, head);
        if (!four) {
            out[6] = IPPROTO_ESP;
            put16(out + 4, (uint32_t)size);
            return head;
        }
        if (out[4] == 0 && out[5] == 0)
            put16(out + 4, next_ident(table));
        if (sa->df >= 0)
            out[6] = (uint8_t)((out[6] & 0xBF) | sa->df << 6);
        out[9] = IPPROTO_ESP;
        put16(out + 2, (uint32_t)(head + size));
        ip_checksum(out, head);
        return head;
    }
    if (sa->six) {
        put32(out, 6u << 28 | (uint32_t)traffic << 20);
        put16(out + 4, (uint32_t)size);
        out[6] = IPPROTO_ESP, out[7] = TTL;
        memcpy(out + 8, sa->local, 16);
        memcpy(out + 24, sa->peer, 16);
        return 40;
    }
    out[0] = 0x45, out[1] = traffic;
    put16(out + 2, (uint32_t)(20 + size));
    put16(out + 4, next_ident(table));
    put16(out + 6, (uint32_t)dont_fragment(sa, packet) << 14);
    out[8] = TTL, out[9] = IPPROTO_ESP;
    memcpy(out + 12, sa->local, 4);
    memcpy(out + 16, sa->peer, 4);
    ip_checksum(out, 20);
    return 20;
}

/* Octets of one packet on the wire, or of its datagram's payload. */
static size_t wire_size(const struct association *sa, const struct plan *plan, size_t size)
{
    size_t text = size - (sa->tunnel ? 0 : plan->ip);
    size_t esp = ESP_HEADER + IV + (text + 2 + 3) / 4 * 4 + ICV;
    return sa->udp ? esp : esp + (sa->tunnel ? (sa->six ? 40 : 20) : plan->ip);
}

/* Protect one packet. The octets behind it are used for the trailer and put back. */
static void seal_packet(struct table *table, struct association *sa, const struct plan *plan, uint8_t *packet,
                        size_t size, uint64_t number)
{
    bool four = packet[0] >> 4 == 4;
    uint8_t traffic = four ? packet[1] : (uint8_t)((packet[0] & 15) << 4 | packet[1] >> 4);
    uint8_t outer = sa->tunnel && sa->dscp >= 0 ? (uint8_t)(sa->dscp << 2 | (traffic & 3)) : traffic;
    uint8_t *text = sa->tunnel ? packet : packet + plan->ip;
    uint8_t next = sa->tunnel ? (four ? IPPROTO_IPIP : IPPROTO_IPV6) : packet[four ? 9 : 6];
    size_t length = size - (size_t)(text - packet), pad = (size_t)-(length + 2) & 3;
    uint8_t *trailer = text + length, behind[5], *out;
    out = room(&table->out, sa, outer, sa->udp && dont_fragment(sa, packet), wire_size(sa, plan, size));
    memcpy(behind, trailer, sizeof behind);
    for (size_t i = 0; i < pad; i++)
        trailer[i] = (uint8_t)(i + 1);
    trailer[pad] = (uint8_t)pad, trailer[pad + 1] = next;
    length += pad + 2;
    if (!sa->udp)
        out += outer_header(table, sa, packet, outer, ESP_HEADER + IV + length + ICV, out);
    uint8_t aad[12], nonce[12];
    put32(aad, sa->spi);
    put32(aad + 4, (uint32_t)(number >> 32));
    put32(aad + 8, (uint32_t)number);
    memcpy(out, aad, 4);
    memcpy(out + 4, aad + 8, 4);
    memcpy(out + ESP_HEADER, aad + 4, IV); /* the number is the IV (RFC 4106 section 3.1) */
    memcpy(nonce, sa->salt, 4);
    memcpy(nonce + 4, aad + 4, IV);
    if (sa->placed) {
        memcpy(out + ESP_HEADER + IV, text, length);
        memset(out + ESP_HEADER + IV + length, 0, ICV);
    } else if (!aead_seal(sa->aead, nonce, sa->esn ? aad : out, sa->esn ? 12 : 8, text, length, out + ESP_HEADER + IV)) {
        /* never seen; what is sent in its place cannot be verified, and says nothing */
        memset(out + ESP_HEADER + IV, 0, length + ICV);
        table->drops[SEND_FAILED]++;
    }
    memcpy(trailer, behind, sizeof behind);
    if (sa->placed) {
        struct outgoing *all = &table->out;
        struct message *made = all->messages + all->count - 1;
        memcpy(all->buffer + all->used, packet, size);
        made->plain_at = (uint32_t)all->used, made->plain_size = (uint32_t)size;
        all->used += size;
    }
}

/* Understand a frame; false when it is not one for this loop. Nothing is changed. */
static bool plan_frame(const struct association *sa, const struct route *route, uint8_t protocol, struct plan *plan)
{
    const uint8_t *packet = plan->packet;
    bool four = packet[0] >> 4 == 4;
    plan->ip = four ? 20 : 40;
    if (plan->size > LARGEST || (four ? get16(packet + 2) : 40u + get16(packet + 4)) != plan->size)
        return false;
    unsigned type = plan->offload.gso_type & (unsigned)~VIRTIO_NET_HDR_GSO_ECN;
    if (type == VIRTIO_NET_HDR_GSO_NONE) {
        plan->count = 1, plan->head = 0, plan->segment = plan->size;
        if (plan->offload.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM
            && (size_t)plan->offload.csum_start + plan->offload.csum_offset + 2 > plan->size)
            return false;
    } else {
        plan->tcp = protocol == IPPROTO_TCP;
        if (type != (plan->tcp ? (four ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_TCPV6)
                               : VIRTIO_NET_HDR_GSO_UDP_L4)
            || plan->size < plan->ip + 20)
            return false;
        size_t header = plan->tcp ? (size_t)(packet[plan->ip + 12] >> 4) * 4 : 8;
        plan->head = plan->ip + header;
        plan->segment = plan->offload.gso_size;
        if ((plan->tcp && header < 20) || plan->head >= plan->size || plan->segment == 0)
            return false;
        plan->count = (plan->size - plan->head + plan->segment - 1) / plan->segment;
    }
    size_t largest = plan->head + plan->segment, train = TRAIN_OCTETS / wire_size(sa, plan, largest);
    if (largest > route->fits || train == 0 || plan->count * wire_size(sa, plan, largest) > MOST_OCTETS)
        return false;
    train = train < TRAIN_SEGMENTS ? train : TRAIN_SEGMENTS;
    return (sa->udp && !sa->placed ? plan->count / train + 2 : plan->count) <= MOST_MESSAGES;
}

/* Count everything a frame comes to and take its numbers; false, and nothing is taken, when a limit is near. */
static bool take(struct association *sa, const struct plan *plan, uint64_t now, uint64_t *number)
{
    struct entry *entry = &sa->account->out;
    uint64_t octets = plan->count * plan->head + (plan->size - plan->head), packets = plan->count;
    if (!entry_take(entry, octets, packets, sa->most_octets, sa->most_packets))
        return false;
    *number = entry_reserve(entry, packets, sa->esn ? UINT64_MAX : UINT32_MAX);
    if (*number != UINT64_MAX) {
        __atomic_store_n(&entry->last, now, __ATOMIC_RELAXED);
        return true;
    }
    entry_give_back(entry, octets, packets);
    return false;
}

static void store_checksum(uint8_t *place, uint64_t total, bool tcp)
{
    uint16_t value = (uint16_t)~fold(total);
    if (value == 0 && !tcp)
        value = 0xFFFF;
    memcpy(place, &value, 2);
}

/* Cut a large packet up as the kernel would (tcp_gso_segment, __udp_gso_segment), each segment's headers
 * written in front of its payload over the segment before, which has left already. */
static void seal_segments(struct table *table, struct association *sa, const struct plan *plan, uint64_t number)
{
    uint8_t headers[40 + 60], *packet = plan->packet;
    size_t ip = plan->ip, head = plan->head, header = head - ip, rest = plan->size - head;
    bool four = ip == 20;
    memcpy(headers, packet, head);
    uint8_t *checksum = headers + ip + (plan->tcp ? 16 : 6);
    checksum[0] = checksum[1] = 0;
    uint64_t addresses = four ? sum(headers + 12, 8) : sum(headers + 8, 32);
    addresses += htons(plan->tcp ? IPPROTO_TCP : IPPROTO_UDP);
    uint32_t sequence = get32(headers + ip + 4);
    uint16_t ident = get16(headers + 4);
    uint8_t flags = headers[ip + 13], *payload = packet + head;
    for (size_t i = 0; i < plan->count; i++) {
        size_t size = rest < plan->segment ? rest : plan->segment;
        uint8_t *at = payload - head;
        memcpy(at, headers, head);
        if (four) {
            put16(at + 2, (uint32_t)(head + size));
            put16(at + 4, ident + (uint32_t)i);
            ip_checksum(at, 20);
        } else {
            put16(at + 4, (uint32_t)(header + size));
        }
        if (plan->tcp) {
            put32(at + ip + 4, sequence + (uint32_t)(i * plan->segment));
            at[ip + 13] = flags & (uint8_t)~((i > 0 ? TCP_CWR : 0) | (rest > size ? TCP_FIN | TCP_PSH : 0));
        } else {
            put16(at + ip + 4, (uint32_t)(header + size));
        }
        uint64_t total = addresses + htons((uint16_t)(header + size)) + sum(at + ip, header + size);
        store_checksum(at + (checksum - headers), total, plan->tcp);
        seal_packet(table, sa, plan, at, head + size, number + i + 1);
        payload += size;
        rest -= size;
    }
}

bool seal_frame(struct table *table, uint8_t *frame, size_t size, bool placed, uint64_t now)
{
    uint8_t key[KEY];
    struct plan plan = {.packet = frame + VNET, .size = size - VNET};
    if (size < VNET || !flow_key(plan.packet, plan.size, key))
        return false;
    const struct route *route = table_route(table, key);
    struct association *sa = route == NULL ? NULL : table->outbound[route->slot];
    if (sa == NULL || sa->placed != placed)
        return false;
    memcpy(&plan.offload, frame, VNET);
    uint64_t number;
    if (!plan_frame(sa, route, key[0], &plan) || !take(sa, &plan, now, &number))
        return false;
    if (plan.head > 0) {
        seal_segments(table, sa, &plan, number);
        return true;
    }
    if (plan.offload.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) {
        uint8_t *start = plan.packet + plan.offload.csum_start;
        uint64_t total = sum(start, plan.size - plan.offload.csum_start);
        store_checksum(start + plan.offload.csum_offset, total, key[0] == IPPROTO_TCP);
    }
    seal_packet(table, sa, &plan, plan.packet, plan.size, number + 1);
    return true;
}
