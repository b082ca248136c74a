/* Runs inside a container: message queues, shared memory and semaphores, made, used and removed; and the
 * socket that PAM opens. Exits 1 at the first failure. */
#include <fcntl.h>
#include <linux/netlink.h>
#include <mqueue.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <unistd.h>

static void check(int good, const char *what) {
	if (!good) {
		perror(what);
		exit(1);
	}
}

int main(void) {
	char got[16] = "";
	struct mq_attr attr = {.mq_maxmsg = 4, .mq_msgsize = sizeof got};
	mqd_t queue = mq_open("/probe", O_CREAT | O_EXCL | O_RDWR, 0600, &attr);
	check(queue != (mqd_t)-1, "mq_open");
	check(mq_send(queue, "hello", 6, 0) == 0, "mq_send");
	check(mq_receive(queue, got, sizeof got, NULL) == 6 && strcmp(got, "hello") == 0, "mq_receive");
	check(access("/dev/mqueue/probe", F_OK) == 0, "/dev/mqueue");
	check(mq_unlink("/probe") == 0, "mq_unlink");

	int memory = shm_open("/probe", O_CREAT | O_EXCL | O_RDWR, 0600);
	check(memory >= 0, "shm_open");
	check(ftruncate(memory, 4096) == 0, "ftruncate");
	char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
	check(page != MAP_FAILED, "mmap");
	page[0] = 1;
	check(shm_unlink("/probe") == 0, "shm_unlink");

	int segment = shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0600);
	check(segment >= 0, "shmget");
	page = shmat(segment, NULL, 0);
	check(page != (void *)-1, "shmat");
	page[0] = 1;
	check(shmctl(segment, IPC_RMID, NULL) == 0, "shmctl");
	int semaphores = semget(IPC_PRIVATE, 1, IPC_CREAT | 0600);
	check(semaphores >= 0 && semctl(semaphores, 0, IPC_RMID) == 0, "semget");
	int messages = msgget(IPC_PRIVATE, IPC_CREAT | 0600);
	check(messages >= 0 && msgctl(messages, IPC_RMID, NULL) == 0, "msgget");
	check(socket(AF_NETLINK, SOCK_RAW, NETLINK_AUDIT) >= 0, "audit socket");
	return 0;
}
