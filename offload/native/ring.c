/* Packets that an adapter hands up, out of memory that it shares (offload/nic/rings.py). The process on the other side may
 * have been taken over, and writes there what it likes and when it likes: each word, slot and octet is read once, into
 * memory of our own, lengths are compared with what there can be, and nothing is looked at where it came from. */
#include "native.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { HEAD = 0, WRITER_WAITS = 1, TAIL = 16, READER_WAITS = 17, SLOTS_AT = 256, FLAG_MARKED = 1 };

_Static_assert(sizeof(struct ring_slot) == 106, "as offload.nic.slots packs it");

/* What was copied is not fetched again from where it was: the compiler must not think that it is still the same. */
static void settled(void) { __asm__ volatile("" ::: "memory"); }

static uint64_t load(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
static void store(uint64_t *word, uint64_t value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }

bool ring_open(struct ring *ring, uint8_t *memory, const size_t starts[3], uint32_t slots, size_t room)
{
    *ring = (struct ring){
        .transmit = (uint64_t *)(memory + starts[0]),
        .completed = (uint64_t *)(memory + starts[1]),
        .received = (uint64_t *)(memory + starts[2]),
        .slots = memory + starts[2] + SLOTS_AT,
        .room = memory + starts[2] + SLOTS_AT + (size_t)slots * RING_STRIDE,
        .slot_count = slots, .room_size = room, .left = room, .bell = -1, .other_bell = -1,
    };
    ring->octets = malloc(room + SLACK); /* of which what is not used takes nothing */
    return ring->octets != NULL;
}

void ring_close(struct ring *ring)
{
    free(ring->octets);
    ring->octets = NULL;
    ring->broken = true;
}

static void copy(struct ring *ring, size_t size)
{
    size_t first = ring->room_size - ring->at;
    if (size < first) {
        memcpy(ring->octets, ring->room + ring->at, size);
        ring->at += size;
        return;
    }
    memcpy(ring->octets, ring->room + ring->at, first);
    memcpy(ring->octets + first, ring->room, size - first);
    ring->at = size - first;
}

bool ring_take(struct ring *ring)
{
    if (ring->broken)
        return false;
    uint64_t waiting = load(ring->received + HEAD) - ring->count;
    if (waiting == 0)
        return false;
    ring->broken = waiting > ring->slot_count - (ring->count - ring->told);
    if (ring->broken)
        return false;
    memcpy(&ring->slot, ring->slots + ring->count % ring->slot_count * RING_STRIDE, sizeof ring->slot);
    settled();
    uint64_t size = (uint64_t)ring->slot.header + ring->slot.numbers + ring->slot.size;
    ring->broken = size > ring->left;
    if (ring->broken)
        return false;
    copy(ring, (size_t)size);
    settled();
    ring->left -= (size_t)size;
    ring->count++;
    return true;
}

static bool is_address(const struct ring_end *end) { return end->version == 4 || end->version == 6; }

/* An IPv4 header as a raw socket shows it, or none. */
static bool plain_header(const struct ring_slot *slot, const uint8_t *header)
{
    return slot->header == 0
        || (slot->header >= 20 && slot->source.version == 4 && header[0] >> 4 == 4
            && (header[0] & 15u) * 4 == slot->header);
}

bool ring_understood(struct ring *ring)
{
    const struct ring_slot *slot = &ring->slot;
    struct arrival *from = &ring->arrival;
    size_t before = (size_t)slot->header + slot->numbers;
    bool marked = slot->flags == FLAG_MARKED, udp = slot->local.version != 0;
    *from = (struct arrival){.fd = ring->bell, .buffer = ring->octets, .up_at = before, .up_size = slot->size};
    if (slot->protocol != IPPROTO_ESP || slot->size == 0 || !plain_header(slot, ring->octets)
        || !is_address(&slot->source) || slot->source.version != slot->destination.version
        || udp != (slot->peer.version != 0) || (udp && (!is_address(&slot->local) || !is_address(&slot->peer))))
        return false;
    if (marked ? slot->status != 0 || slot->segment != 0 || slot->numbers % 4 != 0
               : slot->flags != 0 || slot->numbers != 0)
        return false;
    if (slot->numbers == 0 ? slot->header + (size_t)slot->size > LARGEST
                           : slot->size > ESP_HEADER + VNET + LARGEST)
        return false;
    from->head = slot->header, from->at = before, from->size = before + slot->size;
    from->segment = slot->segment == 0 ? slot->size : slot->segment;
    from->udp = udp, from->six = slot->source.version == 6, from->traffic = slot->traffic;
    from->marked = marked, from->handle = slot->handle, from->high = slot->high;
    from->numbers = slot->numbers / 4;
    return true;
}

/* Telling ---------------------------------------------------------------------------------------------- */

bool ring_stirred(const struct ring *ring) { return load(ring->received + HEAD) != ring->count; }

void ring_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

void ring_tell(struct ring *ring)
{
    ring->told = ring->count, ring->left = ring->room_size;
    store(ring->received + TAIL, ring->count);
}

bool ring_awaited(const struct ring *ring) { return load(ring->received + WRITER_WAITS) != 0; }

void ring_sleep(struct ring *ring, bool sleeps) { store(ring->received + READER_WAITS, sleeps); }

void ring_publish(struct ring *ring)
{
    if (ring->told == ring->count)
        return;
    ring_fence();
    ring_tell(ring);
    ring_fence();
    /* a doorbell that is full has been rung often enough */
    if (ring_awaited(ring) && write(ring->other_bell, "", 1) < 0 && errno != EAGAIN && errno != EINTR)
        ring->broken = true;
}

bool ring_doze(struct ring *ring)
{
    ring_publish(ring);
    ring_sleep(ring, true);
    ring_fence();
    return !ring_stirred(ring);
}

bool ring_hear(struct ring *ring)
{
    uint8_t rung[4096];
    ssize_t size = read(ring->bell, rung, sizeof rung);
    ring_sleep(ring, false);
    ring->broken |= size == 0;
    return !ring->broken;
}

bool ring_asks(const struct ring *ring, bool rung)
{
    return load(ring->completed + HEAD) != load(ring->completed + TAIL)
        || (rung && load(ring->transmit + WRITER_WAITS) != 0);
}
