/* What the loop knows: SAs by slot and SPI, routes (flow to outbound SA), flows an inbound SA is for; and the
 * ledger's counters and replay windows (RFC 4303 section 3.4.3). */
#include "native.h"

#include <openssl/crypto.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

/* Ledger ----------------------------------------------------------------------------------------------- */

/* Take `count` numbers, none above `most`; the last number before them, or UINT64_MAX when there are not that
 * many. Other workers may do the same at the same time. */
uint64_t entry_reserve(struct entry *entry, uint64_t count, uint64_t most)
{
    uint64_t before = __atomic_load_n(&entry->number, __ATOMIC_RELAXED);
    do {
        if (before > most || most - before < count)
            return UINT64_MAX;
    } while (!__atomic_compare_exchange_n(&entry->number, &before, before + count, true, __ATOMIC_RELAXED,
                                          __ATOMIC_RELAXED));
    return before;
}

void entry_count(struct entry *entry, uint64_t octets, uint64_t packets, uint64_t now)
{
    __atomic_fetch_add(&entry->octets, octets, __ATOMIC_RELAXED);
    __atomic_fetch_add(&entry->packets, packets, __ATOMIC_RELAXED);
    __atomic_store_n(&entry->last, now, __ATOMIC_RELAXED);
}

/* Other workers may do the same at the same time: what both looked at before either counted is not enough. */
bool entry_take(struct entry *entry, uint64_t octets, uint64_t packets, uint64_t most_octets, uint64_t most_packets)
{
    if (__atomic_load_n(&entry->octets, __ATOMIC_RELAXED) + octets >= most_octets
        || __atomic_load_n(&entry->packets, __ATOMIC_RELAXED) + packets >= most_packets)
        return false;
    uint64_t had = __atomic_add_fetch(&entry->octets, octets, __ATOMIC_RELAXED);
    uint64_t sent = __atomic_add_fetch(&entry->packets, packets, __ATOMIC_RELAXED);
    if (had < most_octets && sent < most_packets)
        return true;
    entry_give_back(entry, octets, packets);
    return false;
}

void entry_give_back(struct entry *entry, uint64_t octets, uint64_t packets)
{
    __atomic_fetch_sub(&entry->octets, octets, __ATOMIC_RELAXED);
    __atomic_fetch_sub(&entry->packets, packets, __ATOMIC_RELAXED);
}

/* Octets of the ring are a power of two, so that a number's bit is found by masking. */
static uint64_t ring_mask(uint32_t size)
{
    uint64_t ring = 64;
    while (ring < size)
        ring <<= 1;
    return ring - 1;
}

static void lock(struct entry *entry)
{
    /* held for some nanoseconds, unless its holder does not run just now; if it died, we are ended, too */
    while (__atomic_exchange_n(&entry->lock, 1, __ATOMIC_ACQUIRE) != 0)
        sched_yield();
}

static void unlock(struct entry *entry) { __atomic_store_n(&entry->lock, 0, __ATOMIC_RELEASE); }

static uint64_t full_number(uint64_t highest, uint32_t size, uint32_t low)
{
    uint64_t high = highest >> 32;
    uint32_t base = (uint32_t)highest, bottom = base - size + 1;
    if (base >= size - 1)
        return (low >= bottom ? high : high + 1) << 32 | low;
    /* the window reaches back into the previous 2^32 numbers (RFC 4303 appendix A2.2) */
    return (low >= bottom && high != 0 ? high - 1 : high) << 32 | low;
}

static int window_state(const struct account *account, uint32_t size, uint64_t number)
{
    uint64_t highest = account->in.number;
    if (number > highest)
        return -1;
    if (number == 0 || highest - number >= size)
        return LATE;
    uint64_t at = number & ring_mask(size);
    return account->seen[at / 64] >> at % 64 & 1 ? REPLAYED : -1;
}

int window_check(const struct account *account, uint32_t size, bool esn, uint32_t low, uint64_t *number)
{
    struct entry *entry = (struct entry *)&account->in;
    lock(entry);
    *number = esn ? full_number(entry->number, size, low) : low;
    int state = window_state(account, size, *number);
    unlock(entry);
    return state;
}

bool window_accept(struct account *account, uint32_t size, uint64_t number)
{
    struct entry *entry = &account->in;
    lock(entry);
    if (window_state(account, size, number) != -1) {
        unlock(entry);
        return false;
    }
    uint64_t mask = ring_mask(size), highest = entry->number;
    if (number > highest) {
        if (number - highest > mask)
            memset(account->seen, 0, (mask + 1) / 8);
        else
            for (uint64_t n = highest + 1; n < number; n++)
                account->seen[(n & mask) / 64] &= ~(UINT64_C(1) << (n & 63));
        __atomic_store_n(&entry->number, number, __ATOMIC_RELAXED);
    }
    account->seen[(number & mask) / 64] |= UINT64_C(1) << (number & 63);
    unlock(entry);
    return true;
}

/* Hashes ----------------------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t a, uint64_t b)
{
    __uint128_t product = (__uint128_t)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* Keyed, because peers choose addresses and ports. */
static uint32_t hash(const struct table *table, const uint8_t key[KEY], uint64_t salt)
{
    uint64_t word[KEY / 8];
    memcpy(word, key, KEY);
    uint64_t found = salt ^ table->seed[0];
    for (int i = 0; i < KEY / 8; i++)
        found = mix(found ^ word[i], table->seed[1]);
    return (uint32_t)(found ^ found >> 32);
}

/* SPIs ------------------------------------------------------------------------------------------------- */

static uint32_t spi_place(const struct table *table, uint32_t spi)
{
    return (uint32_t)mix(spi ^ table->seed[0], table->seed[1]) & table->spi_mask;
}

static void spi_put(struct table *table, uint32_t spi, uint32_t slot)
{
    uint32_t at = spi_place(table, spi);
    while (table->spis[at] != 0)
        at = (at + 1) & table->spi_mask;
    table->spis[at] = (uint64_t)spi << 32 | (slot + 1);
}

static bool spi_grow(struct table *table)
{
    uint64_t *before = table->spis;
    uint32_t count = table->spi_mask + 1;
    uint64_t *made = calloc(2 * (size_t)count, sizeof *made);
    if (made == NULL)
        return false;
    table->spis = made, table->spi_mask = 2 * count - 1;
    for (uint32_t i = 0; i < count; i++)
        if (before[i] != 0)
            spi_put(table, (uint32_t)(before[i] >> 32), (uint32_t)before[i] - 1);
    free(before);
    return true;
}

static void spi_delete(struct table *table, uint32_t spi)
{
    uint32_t at = spi_place(table, spi);
    while (table->spis[at] != 0 && table->spis[at] >> 32 != spi)
        at = (at + 1) & table->spi_mask;
    if (table->spis[at] == 0)
        return;
    table->spis[at] = 0;
    table->spi_count--;
    /* those behind it may have been pushed there by it */
    for (at = (at + 1) & table->spi_mask; table->spis[at] != 0; at = (at + 1) & table->spi_mask) {
        uint64_t moved = table->spis[at];
        table->spis[at] = 0;
        spi_put(table, (uint32_t)(moved >> 32), (uint32_t)moved - 1);
    }
}

struct association *table_spi(const struct table *table, uint32_t spi)
{
    for (uint32_t at = spi_place(table, spi); table->spis[at] != 0; at = (at + 1) & table->spi_mask)
        if (table->spis[at] >> 32 == spi)
            return table->inbound[(uint32_t)table->spis[at] - 1];
    return NULL;
}

/* SAs -------------------------------------------------------------------------------------------------- */

struct table *table_new(struct account *ledger, uint32_t slots, const uint8_t seed[16])
{
    struct table *table = calloc(1, sizeof *table);
    if (table == NULL)
        return NULL;
    table->ledger = ledger, table->slots = slots, table->spi_mask = 255;
    memcpy(table->seed, seed, 16);
    table->seed[1] |= 1;
    table->ident = (uint16_t)table->seed[0];
    table->device = -1;
    table->route_generation = table->admitted_generation = 1;
    table->out.size = 8 * (LARGEST + 1);
    table->incoming_size = VNET + LARGEST + 1;
    table->outbound = calloc(slots, sizeof *table->outbound);
    table->inbound = calloc(slots, sizeof *table->inbound);
    table->spis = calloc(table->spi_mask + 1, sizeof *table->spis);
    table->routes = calloc(ROUTES, sizeof *table->routes);
    table->admitted = calloc(ADMITTED, sizeof *table->admitted);
    table->out.buffer = malloc(table->out.size + SLACK);
    table->frame.buffer = malloc(VNET + LARGEST + SLACK);
    table->spare = malloc(VNET + LARGEST + SLACK);
    table->incoming = malloc(table->incoming_size + SLACK);
    table->arrival.buffer = malloc(LARGEST + SLACK);
    if (table->outbound && table->inbound && table->spis && table->routes && table->admitted
        && table->out.buffer && table->frame.buffer && table->spare && table->incoming
        && table->arrival.buffer)
        return table;
    table_free(table);
    return NULL;
}

static void association_free(struct association *sa)
{
    if (sa == NULL)
        return;
    aead_free(sa->aead);
    OPENSSL_cleanse(sa, sizeof *sa); /* the salt is part of the key */
    free(sa);
}

void table_free(struct table *table)
{
    for (uint32_t slot = 0; slot < table->slots; slot++) {
        if (table->outbound != NULL)
            association_free(table->outbound[slot]);
        if (table->inbound != NULL)
            association_free(table->inbound[slot]);
    }
    free(table->outbound);
    free(table->inbound);
    free(table->spis);
    free(table->routes);
    free(table->admitted);
    free(table->out.buffer);
    free(table->frame.buffer);
    free(table->spare);
    free(table->incoming);
    free(table->arrival.buffer);
    free(table);
}

bool table_add(struct table *table, struct association *sa, bool inbound)
{
    struct association **place = (inbound ? table->inbound : table->outbound) + sa->slot;
    sa->serial = ++table->serial;
    sa->account = table->ledger + sa->slot;
    if (*place != NULL) { /* it has moved: what a meter has set stays, and what an adapter has */
        sa->most_octets = (*place)->most_octets, sa->most_packets = (*place)->most_packets;
        sa->placed = (*place)->placed, sa->handle = (*place)->handle, sa->high = (*place)->high;
        sa->marked_octets = (*place)->marked_octets, sa->marked_packets = (*place)->marked_packets;
    }
    if (inbound) {
        if (2 * table->spi_count > table->spi_mask && !spi_grow(table)) {
            association_free(sa);
            return false;
        }
        if (*place != NULL)
            spi_delete(table, (*place)->spi);
        spi_put(table, sa->spi, sa->slot);
        table->spi_count++;
    }
    association_free(*place);
    *place = sa;
    return true;
}

void table_remove(struct table *table, uint32_t slot)
{
    if (table->inbound[slot] != NULL)
        spi_delete(table, table->inbound[slot]->spi);
    association_free(table->inbound[slot]);
    association_free(table->outbound[slot]);
    table->inbound[slot] = table->outbound[slot] = NULL;
}

/* Flows ------------------------------------------------------------------------------------------------ */

struct route *table_route(const struct table *table, const uint8_t key[KEY])
{
    uint32_t at = hash(table, key, 0);
    for (uint32_t i = 0; i < ROUTES; i++) {
        struct route *route = table->routes + ((at + i) & (ROUTES - 1));
        if (route->generation != table->route_generation)
            return NULL;
        if (memcmp(route->key, key, KEY) == 0)
            return route->gone ? NULL : route;
    }
    return NULL;
}

/* Places of routes that were removed are taken until all are cleared. False when there are too many of either:
 * then Python carries the flow. */
bool table_add_route(struct table *table, const uint8_t key[KEY], uint32_t slot, uint32_t fits)
{
    uint32_t at = hash(table, key, 0);
    for (uint32_t i = 0; i < ROUTES; i++) {
        struct route *route = table->routes + ((at + i) & (ROUTES - 1));
        bool taken = route->generation == table->route_generation;
        if (taken && memcmp(route->key, key, KEY) != 0)
            continue;
        if (!taken && ++table->route_count > ROUTES / 4 * 3)
            return false;
        memcpy(route->key, key, KEY);
        route->slot = slot, route->fits = fits, route->gone = false;
        route->generation = table->route_generation;
        return true;
    }
    return false;
}

bool table_is_admitted(const struct table *table, uint64_t serial, const uint8_t key[KEY])
{
    uint32_t at = hash(table, key, serial);
    for (uint32_t i = 0; i < ADMITTED; i++) {
        const struct admitted *one = table->admitted + ((at + i) & (ADMITTED - 1));
        if (one->generation != table->admitted_generation)
            return false;
        if (one->serial == serial && memcmp(one->key, key, KEY) == 0)
            return true;
    }
    return false;
}

void table_admit(struct table *table, uint64_t serial, const uint8_t key[KEY])
{
    if (table_is_admitted(table, serial, key))
        return;
    if (++table->admitted_count > ADMITTED / 2) {
        table->admitted_generation++;
        table->admitted_count = 1;
    }
    uint32_t at = hash(table, key, serial);
    for (;; at++) {
        struct admitted *one = table->admitted + (at & (ADMITTED - 1));
        if (one->generation == table->admitted_generation)
            continue;
        memcpy(one->key, key, KEY);
        one->serial = serial, one->generation = table->admitted_generation;
        return;
    }
}
