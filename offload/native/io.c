/* System calls of the loop: a train of segments is one sendmsg (UDP_SEGMENT) and one recvmsg (UDP_GRO), a large
 * packet one read or write of the TUN device. */
#define _GNU_SOURCE
#include "native.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/udp.h>
#include <netinet/ip6.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef UDP_GRO
#define UDP_GRO 104
#endif

enum { CONTROL = 128, BATCH = 64, TURN = 64, READY = 64 };

/* Sending ---------------------------------------------------------------------------------------------- */

struct envelope {
    struct iovec data;
    union {
        struct sockaddr_in four;
        struct sockaddr_in6 six;
    } to;
    _Alignas(struct cmsghdr) uint8_t control[CONTROL];
};

static void control_add(struct msghdr *header, int level, int kind, const void *value, size_t size)
{
    struct cmsghdr *one = (struct cmsghdr *)((uint8_t *)header->msg_control + header->msg_controllen);
    one->cmsg_level = level, one->cmsg_type = kind, one->cmsg_len = CMSG_LEN(size);
    memcpy(CMSG_DATA(one), value, size);
    header->msg_controllen += CMSG_SPACE(size);
}

static void address(struct envelope *envelope, struct msghdr *header, const struct association *sa,
                    const uint8_t *packet)
{
    memset(&envelope->to, 0, sizeof envelope->to);
    header->msg_name = &envelope->to;
    bool six = sa->udp ? sa->six : packet[0] >> 4 == 6;
    if (six) {
        envelope->to.six.sin6_family = AF_INET6;
        envelope->to.six.sin6_port = htons(sa->udp ? sa->peer_port : 0);
        memcpy(&envelope->to.six.sin6_addr, sa->udp ? sa->peer : packet + 24, 16);
        header->msg_namelen = sizeof envelope->to.six;
    } else {
        envelope->to.four.sin_family = AF_INET;
        envelope->to.four.sin_port = htons(sa->udp ? sa->peer_port : 0);
        memcpy(&envelope->to.four.sin_addr, sa->udp ? sa->peer : packet + 16, 4);
        header->msg_namelen = sizeof envelope->to.four;
    }
}

static void envelop(struct envelope *envelope, struct msghdr *header, const struct message *message,
                    uint8_t *buffer)
{
    const struct association *sa = message->sa;
    envelope->data = (struct iovec){buffer + message->at, message->size};
    *header = (struct msghdr){.msg_iov = &envelope->data, .msg_iovlen = 1, .msg_control = envelope->control};
    address(envelope, header, sa, buffer + message->at);
    if (!sa->udp) {
        header->msg_control = NULL;
        return;
    }
    int traffic = message->traffic;
    memset(envelope->control, 0, sizeof envelope->control);
    if (sa->six) {
        control_add(header, IPPROTO_IPV6, IPV6_TCLASS, &traffic, sizeof traffic);
        if (sa->wildcard) {
            struct in6_pktinfo from = {0};
            memcpy(&from.ipi6_addr, sa->local, 16);
            control_add(header, IPPROTO_IPV6, IPV6_PKTINFO, &from, sizeof from);
        }
    } else {
        control_add(header, IPPROTO_IP, IP_TOS, &traffic, sizeof traffic);
        if (sa->wildcard) {
            struct in_pktinfo from = {0};
            memcpy(&from.ipi_spec_dst, sa->local, 4);
            control_add(header, IPPROTO_IP, IP_PKTINFO, &from, sizeof from);
        }
    }
    if (message->count > 1) {
        uint16_t segment = (uint16_t)message->segment;
        control_add(header, IPPROTO_UDP, UDP_SEGMENT, &segment, sizeof segment);
    }
}

static enum reason failure(int error)
{
    switch (error) {
    case EAGAIN:
    case ENOBUFS:
        return SEND_FULL;
    case EMSGSIZE:
        return SEND_TOO_BIG;
    case ENETUNREACH:
    case EHOSTUNREACH:
        return SEND_UNROUTED;
    default:
        return SEND_FAILED;
    }
}

/* A train the system will not cut up (another link's MTU, no checksum offload): its segments one by one, and without
 * DF what the link does not take. */
static void send_segments(struct table *table, const struct message *message)
{
    struct envelope envelope;
    struct msghdr header;
    for (uint32_t at = 0; at < message->size; at += message->segment) {
        struct message one = *message;
        one.at += at, one.count = 1;
        one.size = message->size - at < message->segment ? message->size - at : message->segment;
        envelop(&envelope, &header, &one, table->out.buffer);
        if (sendmsg(one.fd, &header, MSG_DONTWAIT) < 0
            && (errno != EMSGSIZE || sendmsg(message->sa->fd_cut, &header, MSG_DONTWAIT) < 0))
            table->drops[failure(errno)]++;
    }
}

static void flush(struct table *table)
{
    struct outgoing *out = &table->out;
    struct envelope envelopes[BATCH];
    struct mmsghdr headers[BATCH];
    for (int from = 0; from < out->count;) {
        int fd = out->messages[from].fd, count = 0;
        for (; count < BATCH && from + count < out->count && out->messages[from + count].fd == fd; count++)
            envelop(envelopes + count, &headers[count].msg_hdr, out->messages + from + count, out->buffer);
        int sent = sendmmsg(fd, headers, (unsigned)count, MSG_DONTWAIT);
        if (sent > 0) {
            from += sent;
            continue;
        }
        const struct message *failed = out->messages + from++;
        if (errno == EINTR)
            from--;
        else if (failed->sa->udp && (errno == EINVAL || errno == EMSGSIZE || errno == EIO))
            send_segments(table, failed);
        else
            table->drops[failure(errno)] += failed->count;
    }
    out->count = 0;
    out->used = 0;
}

enum pumped pump_device(struct table *table, int device, unsigned budget, uint64_t now)
{
    enum pumped result = MORE;
    while (budget-- > 0) {
        ssize_t size = read(device, table->incoming, table->incoming_size);
        if (size < 0) {
            if (errno == EINTR)
                continue;
            result = errno == EBADFD ? TROUBLE : DRAINED; /* the former: the device was deleted under us */
            break;
        }
        table->incoming_used = (size_t)size;
        if (!seal_frame(table, table->incoming, (size_t)size, false, now)) {
            result = FRAME_UP;
            break;
        }
        if (!outgoing_has_room(&table->out))
            flush(table);
    }
    flush(table);
    return result;
}

/* Receiving -------------------------------------------------------------------------------------------- */

struct receiver {
    struct table *table;
    int device;
};

static void write_device(void *context, const uint8_t *frame, size_t size)
{
    struct receiver *receiver = context;
    ssize_t done;
    do
        done = write(receiver->device, frame, size);
    while (done < 0 && errno == EINTR);
    if (done < 0)
        receiver->table->drops[TUN_REFUSED]++;
    receiver->table->frames++;
    receiver->table->octets += size;
}

static void read_control(struct table *table, struct msghdr *header, int fd)
{
    struct arrival *from = &table->arrival;
    for (struct cmsghdr *one = CMSG_FIRSTHDR(header); one != NULL; one = CMSG_NXTHDR(header, one)) {
        const uint8_t *value = CMSG_DATA(one);
        int number = 0;
        if (one->cmsg_len >= CMSG_LEN(sizeof number))
            memcpy(&number, value, sizeof number);
        if (one->cmsg_level == IPPROTO_UDP && one->cmsg_type == UDP_GRO && number > 0)
            from->segment = (size_t)number;
        else if (one->cmsg_level == IPPROTO_IP && one->cmsg_type == IP_TOS)
            from->traffic = value[0];
        else if (one->cmsg_level == IPPROTO_IPV6 && one->cmsg_type == IPV6_TCLASS)
            from->traffic = (uint8_t)number;
        else if (one->cmsg_level == IPPROTO_IP && one->cmsg_type == IP_PKTINFO)
            memcpy(from->destination, value + offsetof(struct in_pktinfo, ipi_addr), 4);
        else if (one->cmsg_level == IPPROTO_IPV6 && one->cmsg_type == IPV6_PKTINFO)
            memcpy(from->destination, value, 16);
        else if (one->cmsg_level == SOL_SOCKET && one->cmsg_type == SO_RXQ_OVFL && fd < DESCRIPTORS) {
            table->drops[RECEIVE_FULL] += (uint32_t)number - table->overflow[fd];
            table->overflow[fd] = (uint32_t)number;
        }
    }
}

/* The next datagram, or train of them. */
static enum pumped receive(struct table *table, int fd, bool udp)
{
    struct arrival *from = &table->arrival;
    _Alignas(struct cmsghdr) uint8_t control[256];
    struct sockaddr_storage name;
    struct iovec data = {from->buffer, LARGEST};
    struct msghdr header = {.msg_name = &name, .msg_namelen = sizeof name, .msg_iov = &data, .msg_iovlen = 1,
                            .msg_control = control, .msg_controllen = sizeof control};
    ssize_t size = recvmsg(fd, &header, MSG_DONTWAIT);
    from->size = from->at = 0;
    if (size < 0)
        return errno == EAGAIN ? DRAINED : TROUBLE;
    from->size = from->segment = (size_t)size;
    from->fd = fd, from->udp = udp, from->traffic = 0, from->head = 0;
    from->six = name.ss_family == AF_INET6;
    if (from->six) {
        const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)&name;
        memcpy(from->source, &six->sin6_addr, 16);
        from->source_port = ntohs(six->sin6_port);
    } else {
        const struct sockaddr_in *four = (const struct sockaddr_in *)&name;
        memcpy(from->source, &four->sin_addr, 4);
        from->source_port = ntohs(four->sin_port);
    }
    read_control(table, &header, fd);
    if (udp || from->six)
        return MORE;
    /* a raw socket shows the IPv4 header */
    size_t head = size > 0 ? (size_t)(from->buffer[0] & 15) * 4 : 0;
    if (head < 20 || head > (size_t)size) {
        table->drops[MALFORMED]++;
        from->size = 0;
        return MORE;
    }
    memcpy(from->source, from->buffer + 12, 4);
    memcpy(from->destination, from->buffer + 16, 4);
    from->traffic = from->buffer[1];
    from->head = from->at = head;
    return MORE;
}

/* Open what is left of an arrival, until Python has to do something. */
static enum pumped open_rest(struct receiver *receiver, struct arrival *from, uint64_t now)
{
    while (from->at < from->size) {
        size_t rest = from->size - from->at, size = rest < from->segment ? rest : from->segment;
        uint8_t *data = from->buffer + from->at;
        from->up_at = from->at, from->up_size = size;
        from->at += size;
        enum opened opened = open_datagram(receiver->table, from, data, size, now, write_device, receiver);
        if (opened != GONE)
            return opened == HANDED_UP ? DATAGRAM_UP : PACKET_UP;
    }
    return MORE;
}

enum pumped pump_socket(struct table *table, int fd, bool udp, int device, unsigned budget, uint64_t now)
{
    struct receiver receiver = {table, device};
    enum pumped result;
    for (;;) {
        result = open_rest(&receiver, &table->arrival, now);
        if (result != MORE || budget-- == 0)
            break;
        result = receive(table, fd, udp);
        if (result != MORE)
            break;
    }
    frame_close(table, write_device, &receiver);
    return result;
}

enum pumped pump_ring(struct table *table, struct ring *ring, int device, unsigned budget, uint64_t now)
{
    struct receiver receiver = {table, device};
    enum pumped result;
    for (;;) {
        result = open_rest(&receiver, &ring->arrival, now);
        if (result != MORE || budget-- == 0)
            break;
        if (!ring_take(ring)) {
            result = ring->broken ? TROUBLE : DRAINED;
            break;
        }
        if (!ring_understood(ring)) {
            result = ARRIVAL_UP;
            break;
        }
    }
    frame_close(table, write_device, &receiver);
    ring_publish(ring);
    return result == DATAGRAM_UP ? ARRIVAL_UP : result;
}

/* Waiting ---------------------------------------------------------------------------------------------- */

uint64_t monotonic(void)
{
    struct timespec time;
    clock_gettime(CLOCK_BOOTTIME, &time); /* as sadb.clock: lifetimes go on in a suspended host */
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static enum source source_of(const struct table *table, const struct epoll_event *event)
{
    return (unsigned)event->data.fd < DESCRIPTORS ? table->sources[event->data.fd] : NO_SOURCE;
}

static enum pumped pump(struct table *table, int fd, uint64_t now)
{
    enum source source = table->sources[fd];
    if (source == DEVICE)
        return pump_device(table, fd, TURN, now);
    return pump_socket(table, fd, source == UDP_SOCKET, table->device, TURN, now);
}

/* The ring's turn; `rung`: its doorbell is readable. */
static enum pumped serve_ring(struct table *table, bool rung, uint64_t now, int *fd)
{
    struct ring *ring = table->ring;
    if (ring == NULL)
        return DRAINED;
    *fd = ring->bell;
    return rung && !ring_hear(ring) ? TROUBLE : pump_ring(table, ring, table->device, TURN, now);
}

enum pumped serve(struct table *table, int poll, uint64_t idle, uint64_t busy, int *fd)
{
    struct epoll_event ready[READY];
    struct ring *ring = table->ring;
    uint64_t now = monotonic(), end = now + idle;
    bool begun = false, first = true;
    if (table->arrival.at < table->arrival.size) { /* the rest of a train of which a datagram was handed up */
        *fd = table->arrival.fd;
        enum pumped result = pump_socket(table, *fd, table->arrival.udp, table->device, 0, now);
        if (result != DRAINED && result != MORE)
            return result;
    }
    for (int wait = 0;; first = false) { /* the first look does not wait */
        if (wait != 0 && ring != NULL && !ring_doze(ring))
            wait = 0;
        int count = epoll_wait(poll, ready, READY, wait), others = 0;
        bool rung = false;
        for (int i = 0; i < count; i++) {
            others += source_of(table, ready + i) == NO_SOURCE;
            rung |= source_of(table, ready + i) == RING;
        }
        if (count < 0 || (!first && others > 0))
            return DRAINED;
        now = monotonic();
        uint64_t before = ring == NULL ? 0 : ring->count;
        table->ring_first = !table->ring_first; /* what is handed up by one must not keep the other waiting */
        for (int turn = 0; turn < 2; turn++) {
            if ((turn == 0) == table->ring_first) {
                enum pumped result = serve_ring(table, rung, now, fd);
                if (result != DRAINED && result != MORE)
                    return result;
                continue;
            }
            for (int i = 0; i < count; i++) {
                enum source source = source_of(table, ready + i);
                if (source == NO_SOURCE || source == RING)
                    continue;
                enum pumped result = pump(table, ready[i].data.fd, now);
                if (result != DRAINED && result != MORE) {
                    *fd = ready[i].data.fd;
                    return result;
                }
            }
        }
        if (ring != NULL && ring_asks(ring, rung))
            return DRAINED;
        if (!begun && (count > others + rung || (ring != NULL && ring->count != before))) {
            begun = true;
            end = now + busy < end ? now + busy : end;
        }
        if (now >= end)
            return DRAINED;
        wait = (int)((end - now + 999999) / 1000000);
    }
}
