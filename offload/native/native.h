/* The hot loop of the software engine: what all of its files share.
 *
 * It carries only packets about which nothing has to be decided: their flow and SA are known, no limit is near.
 * Everything else is handed up to Python, in order. Python programs the table; counters, sequence numbers and
 * replay windows are in the ledger (offload/ledger.py), memory that all workers and the daemon share.
 */
#pragma once

#include <linux/virtio_net.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef VIRTIO_NET_HDR_GSO_UDP_L4 /* headers before Linux 6.2 */
#define VIRTIO_NET_HDR_GSO_UDP_L4 5
#endif

enum {
    VNET = 10,        /* struct virtio_net_hdr before each packet of the TUN device */
    LARGEST = 65535,  /* octets of an IP packet */
    SLACK = 1024,     /* behind every buffer that packets are built in: headers, trailers, over-reading */
    KEY = 40,         /* a flow: protocol, addresses, ports, zeros, and the IP version */
    ICV = 16,
    IV = 8,
    ESP_HEADER = 8,
    WINDOW_WORDS = 64,      /* 4096 numbers, the largest replay window */
    TRAIN_SEGMENTS = 64,    /* UDP_MAX_SEGMENTS of every kernel that has UDP_SEGMENT */
    TRAIN_OCTETS = 65507,   /* the largest UDP payload over IPv4 */
    MESSAGES = 256,
    DESCRIPTORS = 1024,
    ROUTES = 1 << 14,
    ADMITTED = 1 << 14,
    RING_STRIDE = 128,      /* octets from slot to slot */
};

/* Why a packet came to nothing; names in the order of REASON_NAMES. */
enum reason {
    MALFORMED, REPLAYED, LATE, UNVERIFIED, DUMMY, CONGESTION,
    TUN_REFUSED, SEND_FULL, SEND_TOO_BIG, SEND_UNROUTED, SEND_FAILED, RECEIVE_FULL, REASONS,
};
#define REASON_NAMES                                                                                     \
    "malformed", "replayed", "late", "unverified", "dummy", "congestion", "device-refused",              \
    "send-buffer-full", "send-too-big", "send-no-route", "send-failed", "receive-buffer-full"

/* The ledger ------------------------------------------------------------------------------------------- */

/* One direction of a pair; `number` is the last one sent or the highest one authenticated, `last` the
 * monotonic clock in nanoseconds. Its own cache line. */
struct entry {
    uint64_t octets, packets, last, number, lock, unused[3];
};

/* One pair. `seen` is a ring: the bit of number n is n modulo the ring's size. */
struct account {
    struct entry out, in;
    uint64_t seen[WINDOW_WORDS];
};

uint64_t entry_reserve(struct entry *entry, uint64_t count, uint64_t most);
void entry_count(struct entry *entry, uint64_t octets, uint64_t packets, uint64_t now);
/* Count, unless that would reach one of the limits; false, and nothing is counted. */
bool entry_take(struct entry *entry, uint64_t octets, uint64_t packets, uint64_t most_octets, uint64_t most_packets);

void entry_give_back(struct entry *entry, uint64_t octets, uint64_t packets);

/* The whole number that 32 bits on the wire stand for, if it is new; a reason otherwise. */
int window_check(const struct account *account, uint32_t size, bool esn, uint32_t low, uint64_t *number);
/* Note a number that was authenticated; false when another packet was faster. */
bool window_accept(struct account *account, uint32_t size, uint64_t number);

/* Ciphers ---------------------------------------------------------------------------------------------- */

enum cipher { AES_GCM, CHACHA20_POLY1305 };
struct aead;
struct aead *aead_new(enum cipher cipher, const uint8_t *key, size_t size); /* the salt is not part of it */
void aead_free(struct aead *aead);
/* `out` takes `size` octets and the check value behind them. */
bool aead_seal(struct aead *aead, const uint8_t nonce[12], const uint8_t *aad, size_t aad_size,
               const uint8_t *in, size_t size, uint8_t *out);
/* `size` is without the check value, which stands behind `in`. What is in `out` is worthless when false. */
bool aead_open(struct aead *aead, const uint8_t nonce[12], const uint8_t *aad, size_t aad_size,
               const uint8_t *in, size_t size, uint8_t *out);
const char *aead_name(void);
/* Make AES-GCM by OpenSSL from now on, which an environment can tell to do without instructions of the processor. */
void aead_openssl_only(void);

/* The table -------------------------------------------------------------------------------------------- */

struct association {
    struct aead *aead;
    struct account *account;
    uint64_t serial;                /* never the same again: what is remembered of an SA ends with it */
    uint64_t most_octets, most_packets; /* Python is asked before these are reached */
    uint32_t slot, spi, window;     /* spi as a number */
    uint8_t salt[4];
    bool esn, tunnel, udp, six;     /* six: the outer addresses are IPv6 */
    bool wildcard;                  /* the socket is bound to no address: say which one to send from */
    int fd, fd_cut;                 /* sockets to send with, in UDP with DF and without */
    int dscp, df;                   /* -1: copied from the inner packet */
    uint8_t local[16], peer[16];    /* 4 or 16 octets */
    uint16_t local_port, peer_port; /* of UDP, host byte order */
    bool placed;                    /* outbound: an adapter has it, so its packets are framed here and Python's */
    uint64_t handle;                /* inbound: an adapter's marks with this handle are believed; 0: none */
    uint32_t high;                  /* and this upper half of the sequence number */
    uint64_t marked_octets, marked_packets; /* of what was believed, until Python asks */
};

struct route {
    uint8_t key[KEY];
    uint32_t slot, fits, generation;
    bool gone;
};

struct admitted {
    uint8_t key[KEY];
    uint64_t serial;
    uint32_t generation;
};

struct message {
    struct association *sa;
    uint32_t at, size, segment, count;
    int fd;
    uint8_t traffic;
    bool df;    /* of UDP */
    bool full;  /* its last segment was a short one */
    uint32_t plain_at, plain_size; /* for an adapter: the packet itself */
};

/* What leaves: trains of equal segments in one buffer. */
struct outgoing {
    uint8_t *buffer;
    size_t used, size;
    struct message messages[MESSAGES];
    int count;
};

/* The frame for the TUN device that is being put together. */
struct frame {
    uint8_t *buffer;     /* virtio_net_hdr, packet */
    size_t size;         /* of the packet, 0: none */
    size_t head, ip;     /* octets of all headers, of the IP header */
    uint32_t segment, count, next; /* payload of each, how many, next TCP sequence number */
    uint16_t ident;      /* of the latest one */
    int step;            /* IPv4 identification: 0 the same, 1 counted, -1 not known yet */
    bool open;           /* can take another one */
};

/* A datagram, or a train of them, that came off the wire. */
struct arrival {
    int fd;
    uint8_t *buffer;
    size_t size, segment, at;
    bool udp, six;
    uint8_t traffic, source[16], destination[16];
    uint16_t source_port, destination_port;
    size_t head;  /* of an IPv4 header at the beginning, raw sockets only */
    size_t up_at, up_size; /* the datagram that was handed up */
    bool marked;           /* an adapter says that it verified and decrypted it for the SA of `handle` ... */
    uint64_t handle;
    uint32_t high;         /* ... with this upper half of its sequence number */
    size_t numbers;        /* and that it is a frame of packets with so many numbers of 32 bits, which follow `head` */
};

/* Rings with an adapter -------------------------------------------------------------------------------- */

/* An address with port; version 0: none. */
struct __attribute__((packed)) ring_end {
    uint8_t version;
    uint16_t port;
    uint8_t address[16];
};

/* A packet received as it lies in a slot (offload.nic.slots.Arrivals): octets of its IP header, sequence numbers and data,
 * which follow each other in the room, and the rest. */
struct __attribute__((packed)) ring_slot {
    uint32_t header, numbers, size;
    uint64_t handle;
    uint32_t high;
    uint16_t segment;
    uint8_t protocol, traffic, status, flags;
    struct ring_end source, destination, local, peer;
};

/* Our side of the ring of packets received (offload/nic/rings.py). The other rings of this memory are Python's, which is
 * only called for them. */
struct ring {
    uint64_t *received, *completed, *transmit; /* the words of each */
    const uint8_t *slots, *room;
    uint32_t slot_count;
    size_t room_size, at;
    size_t left;           /* octets that can be in what is taken before we tell of it */
    uint64_t count, told;
    bool broken;           /* it cannot be, or the other side is gone */
    int bell, other_bell;
    struct ring_slot slot; /* what was taken last, and its octets */
    uint8_t *octets;
    struct arrival arrival;
};

bool ring_open(struct ring *ring, uint8_t *memory, const size_t starts[3], uint32_t slots, size_t room);
void ring_close(struct ring *ring);
/* Take the next one, if there is one and it is not `broken`. */
bool ring_take(struct ring *ring);
/* Whether what was taken is now in `arrival`, or has to be looked at in Python. */
bool ring_understood(struct ring *ring);
bool ring_stirred(const struct ring *ring); /* whether there is something to take */
void ring_fence(void);
void ring_tell(struct ring *ring);    /* a fence must have come before */
bool ring_awaited(const struct ring *ring);
void ring_sleep(struct ring *ring, bool sleeps);
void ring_publish(struct ring *ring); /* tell, and wake the other side if it waits for that */
bool ring_doze(struct ring *ring);    /* publish, and ask to be rung for; false when there is something to take */
bool ring_hear(struct ring *ring);    /* the doorbell is readable; false when the other side is gone */
bool ring_asks(const struct ring *ring, bool rung); /* whether there is something for Python in the other rings */

enum source { NO_SOURCE, DEVICE, UDP_SOCKET, RAW_SOCKET, RING };

struct table {
    struct account *ledger;
    uint32_t slots;
    struct association **outbound, **inbound; /* by slot */
    uint64_t *spis;                           /* spi << 32 | slot + 1, open addressing */
    uint32_t spi_mask, spi_count;
    struct route *routes;
    struct admitted *admitted;
    uint32_t route_generation, route_count, admitted_generation, admitted_count;
    uint64_t seed[2], serial;
    uint64_t drops[REASONS];
    uint16_t ident;
    struct outgoing out;
    struct frame frame;
    uint8_t *spare;        /* a packet for Python, or the next frame */
    size_t spare_size;
    uint32_t spare_spi;
    uint8_t *incoming;     /* a frame read from the TUN device */
    size_t incoming_size, incoming_used;
    struct arrival arrival;
    struct ring *ring;                 /* of an adapter, or none */
    bool ring_first;                   /* it is its turn before the other sources */
    bool alone;                        /* nothing is put together: for measurements */
    uint64_t frames, octets;           /* written to the device */
    int device;                        /* its queue; -1: none yet */
    uint8_t sources[DESCRIPTORS];      /* by descriptor: enum source */
    uint32_t overflow[DESCRIPTORS];    /* by descriptor: what SO_RXQ_OVFL said last */
};

struct table *table_new(struct account *ledger, uint32_t slots, const uint8_t seed[16]);
void table_free(struct table *table);
bool table_add(struct table *table, struct association *sa, bool inbound); /* takes it over in any case */
void table_remove(struct table *table, uint32_t slot);
struct association *table_spi(const struct table *table, uint32_t spi);
struct route *table_route(const struct table *table, const uint8_t key[KEY]);
bool table_add_route(struct table *table, const uint8_t key[KEY], uint32_t slot, uint32_t fits);
bool table_is_admitted(const struct table *table, uint64_t serial, const uint8_t key[KEY]);
void table_admit(struct table *table, uint64_t serial, const uint8_t key[KEY]);

/* Packets ---------------------------------------------------------------------------------------------- */

/* The flow of a plain TCP or UDP packet, as offload.ip.flow_key has it; false for all others. */
bool flow_key(const uint8_t *packet, size_t size, uint8_t key[KEY]);
/* The sum of 16-bit words in memory order, not folded; an odd last octet counts as the first of a word. */
uint64_t sum(const uint8_t *data, size_t size);
uint16_t fold(uint64_t sum);
static inline uint16_t get16(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }
static inline uint32_t get32(const uint8_t *p) { return (uint32_t)get16(p) << 16 | get16(p + 2); }
static inline void put16(uint8_t *p, uint32_t value) { p[0] = (uint8_t)(value >> 8); p[1] = (uint8_t)value; }
static inline void put32(uint8_t *p, uint32_t value) { put16(p, value >> 16); put16(p + 2, value); }

/* A frame from the TUN device, writable and with SLACK behind it: true when it is now in `out`, with room for
 * another one or to be flushed; false when Python has to look at it, and then it is unchanged. With `placed` only one
 * that an adapter is to protect: `out`, empty before, has its packets with zeros for the check value, each followed by
 * the packet itself; without, no such one. */
bool seal_frame(struct table *table, uint8_t *frame, size_t size, bool placed, uint64_t now);
bool outgoing_has_room(const struct outgoing *out);

enum opened { GONE, HANDED_UP, TO_ADMIT };
typedef void write_frame(void *context, const uint8_t *frame, size_t size);
/* One datagram of the arrival: it went into the frame or was dropped (GONE), Python has to open it
 * (HANDED_UP), or it is in `spare`, and Python has to count it and to say whether its SA is for it (TO_ADMIT). */
enum opened open_datagram(struct table *table, const struct arrival *from, uint8_t *data, size_t size, uint64_t now,
                          write_frame *write, void *context);
/* Write what has been put together. */
void frame_close(struct table *table, write_frame *write, void *context);

/* System calls ----------------------------------------------------------------------------------------- */

/* Until nothing waits (DRAINED), `budget` reads are done (MORE), Python has to look at the frame in `incoming`, the
 * datagram in `arrival`, what came in a `ring` or the packet in `spare`, or the socket reported an error that Python
 * has to fetch, or the device or the other side of the ring is gone, or the ring is broken. */
enum pumped { DRAINED, MORE, FRAME_UP, DATAGRAM_UP, ARRIVAL_UP, PACKET_UP, TROUBLE };
enum pumped pump_device(struct table *table, int device, unsigned budget, uint64_t now);
enum pumped pump_socket(struct table *table, int fd, bool udp, int device, unsigned budget, uint64_t now);
enum pumped pump_ring(struct table *table, struct ring *ring, int device, unsigned budget, uint64_t now);
/* Serve those of a poll's descriptors that are the table's sources, until Python has to do something: one of them
 * says so, and is then in `fd`; or another one is ready; or `idle` nanoseconds are over, or, after the first packet,
 * `busy`. DRAINED in the latter cases. What is ready at the beginning is served in any case. */
enum pumped serve(struct table *table, int poll, uint64_t idle, uint64_t busy, int *fd);
uint64_t monotonic(void); /* nanoseconds */
