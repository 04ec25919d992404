/* Reading IP packets: flows and sums. */
#include "native.h"

#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(WITH_SANITIZERS)
#define FOR_EACH_CPU __attribute__((target_clones("avx2", "default"), optimize("O3")))
#else
#define FOR_EACH_CPU
#endif

bool flow_key(const uint8_t *packet, size_t size, uint8_t key[KEY])
{
    if (size < 24)
        return false;
    memset(key, 0, KEY);
    if (packet[0] == 0x45) {
        if ((packet[9] != IPPROTO_TCP && packet[9] != IPPROTO_UDP) || packet[6] & 0x3F || packet[7])
            return false;
        key[0] = packet[9];
        memcpy(key + 1, packet + 12, 12);
        key[KEY - 1] = 4;
        return true;
    }
    if (packet[0] >> 4 != 6 || size < 44 || (packet[6] != IPPROTO_TCP && packet[6] != IPPROTO_UDP))
        return false;
    key[0] = packet[6];
    memcpy(key + 1, packet + 8, 36);
    key[KEY - 1] = 6;
    return true;
}

/* As 2^32 is 1 modulo 2^16 - 1, 32-bit words may be added as well; the loop is one a compiler vectorises. */
FOR_EACH_CPU uint64_t sum(const uint8_t *data, size_t size)
{
    uint64_t total = 0;
    size_t words = size / 4;
    for (size_t i = 0; i < words; i++) {
        uint32_t word;
        memcpy(&word, data + 4 * i, 4);
        total += word;
    }
    data += 4 * words;
    size -= 4 * words;
    if (size >= 2) {
        uint16_t word;
        memcpy(&word, data, 2);
        total += word;
        data += 2;
    }
    if (size & 1) {
        uint16_t word = 0;
        memcpy(&word, data, 1);
        total += word;
    }
    return total;
}

uint16_t fold(uint64_t total)
{
    while (total >> 16)
        total = (total & 0xFFFF) + (total >> 16);
    return (uint16_t)total;
}
